//! Simple Preference Optimization: length-normalised, reference-free, with a
//! target margin.
//!
//! The mean over pairs of −log σ(β (m_chosen − m_rejected) − γ), with m the
//! mean log-probability over a completion's tokens
//! (<https://arxiv.org/abs/2405.14734>).
//!
//! # Worked example
//! m = −1 and −1.5 with β = 2, γ = 0.5: −log σ(1 − 0.5) = 0.4741. With equal
//! means the loss is −log σ(−0.5) = 0.9741.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::alignment::{Alignment, AlignmentNeeds, DataKind, Declared};
use finetuned_plugin_api::parameters::{Parameter, Values};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};
use finetuned_plugin_api::tape::{Formula, TapeBatch, V, positive};

pub const PLUGIN: BuiltIn = BuiltIn { descriptor, make: Make::Alignment(make) };

/// See the module's words.
pub struct Simpo {
    pub beta: f64,
    pub gamma: f64,
}

fn descriptor() -> Descriptor {
    crate::described(
        "simpo",
        Kind::Alignment,
        "Simple Preference Optimization: compares mean log-probabilities with a target margin, without a reference.",
        "SimPO: Simple Preference Optimization with a Reference-Free Reward, https://arxiv.org/abs/2405.14734",
        vec![
            Parameter::number("beta", 2.0, "scale of the mean log-probabilities").range(1e-6, 1e3),
            Parameter::number("gamma", 0.5, "the margin aimed at").range(0.0, f64::INFINITY),
        ],
    )
}

fn make(values: &Values) -> Result<Box<dyn Alignment>, PluginError> {
    let objective = Simpo { beta: values.number("beta")?, gamma: values.number("gamma")? };
    Ok(Box::new(Declared { needs: AlignmentNeeds::only(DataKind::Pairs), objective }))
}

impl Formula for Simpo {
    fn loss<'t>(&self, batch: &TapeBatch<'t>) -> Result<V<'t>, PluginError> {
        let losses = batch.pairs()?.into_iter().map(|(chosen, rejected)| {
            let (win, lose) = (chosen.mean_logp(), rejected.mean_logp());
            super::report(batch, (self.beta * win.value(), win.value()), (self.beta * lose.value(), lose.value()));
            -((win - lose) * self.beta - self.gamma).log_sigmoid()
        });
        Ok(batch.sum(losses) / positive(batch.totals().pairs as f64))
    }
}
