//! Cross-entropy less a bonus for the entropy of the predictions.
//!
//! The mean over trained tokens of −ℓ − c H, with ℓ the token's
//! log-probability, H = −Σ p log p and c `coefficient`: the confidence penalty
//! of Regularizing Neural Networks by Penalizing Confident Output
//! Distributions, <https://arxiv.org/abs/1701.06548>. Keeps a model from
//! growing too sure of a small dataset.
//!
//! # Worked example
//! Two tokens with ℓ = −1 and −3, H = 2 for both, c = 0.1: 2 − 0.2 = 1.8; each
//! dℓ is −0.5 and each dH is −0.05.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::loss::{Batch, Gradients, Loss, Needs, Statistic, TokenRule, Totals};
use finetuned_plugin_api::parameters::{Parameter, Values};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};
use finetuned_plugin_api::tape::positive;

pub const PLUGIN: BuiltIn = BuiltIn { descriptor, make: Make::Loss(make) };

/// See the module's words.
pub struct EntropyBonus {
    pub coefficient: f64,
}

fn descriptor() -> Descriptor {
    crate::described(
        "entropy-bonus",
        Kind::Loss,
        "Cross-entropy less a bonus for uncertain predictions.",
        "Penalizing Confident Output Distributions, https://arxiv.org/abs/1701.06548",
        vec![Parameter::number("coefficient", 0.01, "nats of loss for each nat of entropy").range(0.0, f64::INFINITY)],
    )
}

fn make(values: &Values) -> Result<Box<dyn Loss>, PluginError> {
    Ok(Box::new(EntropyBonus { coefficient: values.number("coefficient")? }))
}

impl Loss for EntropyBonus {
    fn needs(&self) -> Needs {
        Needs::of([Statistic::Entropy])
    }

    fn evaluate(&self, batch: &Batch, out: &mut Gradients) -> Result<(), PluginError> {
        let rule = self.separable(batch.totals).unwrap_or_default();
        rule.evaluate(&self.needs(), batch, out)?;
        let entropy =
            batch.statistic(Statistic::Entropy)?.iter().zip(batch.weight).filter(|(_, weight)| **weight != 0.0);
        let sum: f64 = entropy.map(|(entropy, weight)| f64::from(*entropy) * f64::from(*weight)).sum();
        out.metric("entropy", sum / positive(batch.totals.weight()));
        Ok(())
    }

    fn separable(&self, totals: &Totals) -> Option<TokenRule> {
        let scale = -1.0 / positive(totals.weight());
        Some(TokenRule::of([(Statistic::Logp, scale), (Statistic::Entropy, scale * self.coefficient)]))
    }
}
