//! A reward model by Bradley and Terry, from pairs.
//!
//! A linear value head on the last hidden state gives each answer a number v at
//! its last token; the loss is the mean over pairs of
//!
//! −log σ(v_chosen − v_rejected) + c (v_chosen + v_rejected)²
//!
//! with c `centering`, which holds rewards near 0 (Training a Helpful and
//! Harmless Assistant, <https://arxiv.org/abs/2204.05862>; Helping or Herding?,
//! <https://arxiv.org/abs/2312.09244> for the second term).
//!
//! # Worked example
//! A head of zeros gives v = 0: ln 2 = 0.6931. v = 1.5 and 0.5 give
//! −log σ(1) = 0.3133, derivatives −σ(−1) = −0.2689 and 0.2689.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::alignment::{Alignment, AlignmentNeeds, DataKind, Declared};
use finetuned_plugin_api::loss::Needs;
use finetuned_plugin_api::parameters::{Parameter, Values};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};
use finetuned_plugin_api::tape::{Formula, TapeBatch, V, positive};

pub const PLUGIN: BuiltIn = BuiltIn { descriptor, make: Make::Alignment(make) };

/// See the module's words.
pub struct RewardModel {
    pub centering: f64,
}

fn descriptor() -> Descriptor {
    crate::described(
        "reward-model",
        Kind::Alignment,
        "Trains a value head, saved beside the adapter, to score the chosen answer above the rejected one.",
        "Training a Helpful and Harmless Assistant with RLHF, https://arxiv.org/abs/2204.05862",
        vec![
            Parameter::number("centering", 0.0, "weight that holds the two rewards' sum near 0; 0.01 is usual")
                .range(0.0, f64::INFINITY),
        ],
    )
}

fn make(values: &Values) -> Result<Box<dyn Alignment>, PluginError> {
    let objective = RewardModel { centering: values.number("centering")? };
    let needs = AlignmentNeeds { value_head: true, ..AlignmentNeeds::only(DataKind::Pairs) };
    Ok(Box::new(Declared { needs, objective }))
}

impl Formula for RewardModel {
    fn needs(&self) -> Needs {
        Needs { value: true, ..Needs::default() }
    }

    fn loss<'t>(&self, batch: &TapeBatch<'t>) -> Result<V<'t>, PluginError> {
        let mut losses = Vec::new();
        for (chosen, rejected) in batch.pairs()? {
            let (win, lose) = (chosen.value()?, rejected.value()?);
            super::report(batch, (win.value(), chosen.logp().value()), (lose.value(), rejected.logp().value()));
            losses.push(-(win - lose).log_sigmoid() + (win + lose).square() * self.centering);
        }
        Ok(batch.sum(losses) / positive(batch.totals().pairs as f64))
    }
}
