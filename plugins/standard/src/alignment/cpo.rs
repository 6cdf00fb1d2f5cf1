//! Contrastive Preference Optimization: DPO with a uniform reference, and
//! imitation of the chosen answer.
//!
//! The mean over pairs of −log σ(β (log π(chosen) − log π(rejected))), summed
//! log-probabilities of the completions, plus α times the token mean of
//! −log π over the chosen completions (<https://arxiv.org/abs/2401.08417>).
//!
//! # Worked example
//! log π = −10 and −12 with β = 0.1: −log σ(0.2) = 0.5981. If the chosen
//! completion has 5 tokens, its mean −log π is 2, and at α = 1 the loss is
//! 2.5981.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::alignment::{Alignment, AlignmentNeeds, DataKind, Declared};
use finetuned_plugin_api::parameters::{Parameter, Values};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};
use finetuned_plugin_api::tape::{Formula, TapeBatch, V, positive};

pub const PLUGIN: BuiltIn = BuiltIn { descriptor, make: Make::Alignment(make) };

/// See the module's words.
pub struct Cpo {
    pub beta: f64,
    pub alpha: f64,
}

fn descriptor() -> Descriptor {
    crate::described(
        "cpo",
        Kind::Alignment,
        "Contrastive Preference Optimization: prefers and imitates the chosen answer, without a reference.",
        "Contrastive Preference Optimization, https://arxiv.org/abs/2401.08417",
        vec![
            Parameter::number("beta", 0.1, "how sharply answers are told apart").range(1e-6, 1e3),
            Parameter::number("alpha", 1.0, "weight of the chosen answers' cross-entropy").range(0.0, f64::INFINITY),
        ],
    )
}

fn make(values: &Values) -> Result<Box<dyn Alignment>, PluginError> {
    let objective = Cpo { beta: values.number("beta")?, alpha: values.number("alpha")? };
    Ok(Box::new(Declared { needs: AlignmentNeeds::only(DataKind::Pairs), objective }))
}

impl Formula for Cpo {
    fn loss<'t>(&self, batch: &TapeBatch<'t>) -> Result<V<'t>, PluginError> {
        let pairs = batch.pairs()?;
        let losses = pairs.iter().map(|(chosen, rejected)| {
            let (win, lose) = (chosen.logp(), rejected.logp());
            super::report(batch, (self.beta * win.value(), win.value()), (self.beta * lose.value(), lose.value()));
            -((win - lose) * self.beta).log_sigmoid()
        });
        let preference = batch.sum(losses) / positive(batch.totals().pairs as f64);
        let nll = super::chosen_nll(batch, &pairs);
        batch.metric("nll_loss", nll.value());
        Ok(preference + nll * self.alpha)
    }
}
