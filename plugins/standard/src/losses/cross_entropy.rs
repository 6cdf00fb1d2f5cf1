//! Cross-entropy, with label smoothing and z-loss.
//!
//! With the token's log-probability ℓ, the mean m of log p over the vocabulary
//! and Z = log Σ exp(logit), the loss is the mean over trained tokens of
//!
//! −(1 − ε) ℓ − ε m + ζ Z²
//!
//! with ε `label_smoothing` and ζ `z_loss`. ε spreads that much of the target
//! over all tokens (Rethinking the Inception Architecture,
//! <https://arxiv.org/abs/1512.00567>); ζ keeps logits near 0 (PaLM,
//! <https://arxiv.org/abs/2204.02311>, ζ = 1e-4).
//!
//! # Worked example
//! Two tokens with ℓ = −1 and −3: the loss is 2 and each dℓ is −0.5. With
//! ε = 0.1 and m = −6 for both it is 0.9 · 2 + 0.1 · 6 = 2.4. With ζ = 0.01 and
//! Z = 2 for both, 0.04 is added, and each dZ is 0.01 · 2 · 2 / 2 = 0.02.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::loss::{Batch, Gradients, Loss, Needs, Statistic, TokenRule, Totals};
use finetuned_plugin_api::parameters::{Parameter, Values};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};
use finetuned_plugin_api::tape::positive;

pub const PLUGIN: BuiltIn = BuiltIn { descriptor, make: Make::Loss(make) };

/// See the module's words.
pub struct CrossEntropy {
    pub label_smoothing: f64,
    pub z_loss: f64,
}

fn descriptor() -> Descriptor {
    crate::described(
        "cross-entropy",
        Kind::Loss,
        "The mean of −log p over the trained tokens.",
        "Rethinking the Inception Architecture (label smoothing), https://arxiv.org/abs/1512.00567",
        vec![
            Parameter::number("label_smoothing", 0.0, "part of the target spread over the whole vocabulary")
                .range(0.0, 1.0),
            Parameter::number("z_loss", 0.0, "weight of the squared log-sum-exp of the logits; PaLM used 1e-4")
                .range(0.0, f64::INFINITY),
        ],
    )
}

fn make(values: &Values) -> Result<Box<dyn Loss>, PluginError> {
    Ok(Box::new(CrossEntropy { label_smoothing: values.number("label_smoothing")?, z_loss: values.number("z_loss")? }))
}

impl CrossEntropy {
    /// All but the z-loss, which is linear.
    fn rule(&self, totals: &Totals) -> TokenRule {
        let scale = -1.0 / positive(totals.weight());
        TokenRule::of([
            (Statistic::Logp, scale * (1.0 - self.label_smoothing)),
            (Statistic::MeanLogp, scale * self.label_smoothing),
        ])
    }
}

impl Loss for CrossEntropy {
    fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        needs.statistics[Statistic::MeanLogp] = self.label_smoothing != 0.0;
        needs.statistics[Statistic::Lse] = self.z_loss != 0.0;
        needs
    }

    fn evaluate(&self, batch: &Batch, out: &mut Gradients) -> Result<(), PluginError> {
        self.rule(batch.totals).evaluate(&self.needs(), batch, out)?;
        if self.z_loss != 0.0 {
            let scale = self.z_loss / positive(batch.totals.weight());
            let (lse, dlse) = (batch.statistic(Statistic::Lse)?, &mut out.derivatives[Statistic::Lse]);
            for ((z, dz), weight) in lse.iter().zip(dlse).zip(batch.weight) {
                if *weight != 0.0 {
                    let (z, scale) = (f64::from(*z), scale * f64::from(*weight));
                    out.loss += scale * z * z;
                    *dz = (2.0 * scale * z) as f32;
                }
            }
        }
        Ok(())
    }

    fn separable(&self, totals: &Totals) -> Option<TokenRule> {
        (self.z_loss == 0.0).then(|| self.rule(totals))
    }
}
