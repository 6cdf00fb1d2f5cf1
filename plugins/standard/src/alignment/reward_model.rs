//! A reward model by Bradley and Terry, from pairs.
//!
//! A linear value head on the last hidden state, without a bias, gives each
//! answer a number v at its last token, as transformers' classes for sequence
//! classification do (`score`, of one label) and TRL's RewardTrainer trains; the
//! loss is the mean over pairs of
//!
//! −log σ(v_chosen − v_rejected) + c (v_chosen + v_rejected)²
//!
//! with c `centering`, which holds rewards near 0 (Training a Helpful and
//! Harmless Assistant, <https://arxiv.org/abs/2204.05862>; Helping or Herding?,
//! <https://arxiv.org/abs/2312.09244> for the second term).
//!
//! Only values are asked for, so no logits are computed. The head begins as
//! transformers draws it (normal, deviation `initializer_range`), or as the one
//! that the starting adapter or model holds. It is saved beside an adapter as
//! PEFT does for `SEQ_CLS` (`modules_to_save` names `score`, the tensor is
//! `base_model.model.score.weight`), and in a full model as `score.weight`:
//! `AutoModelForSequenceClassification` with one label loads both. That class
//! reads at the last token that is no padding; where the padding token is also
//! the one that ends a turn, give it another padding token, or it reads one
//! token early.
//!
//! # Worked example
//! A head of zeros gives v = 0: ln 2 = 0.6931. v = 1.5 and 0.5 give
//! −log σ(1) = 0.3133, derivatives −σ(−1) = −0.2689 and 0.2689.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::alignment::{Alignment, AlignmentNeeds, DataKind, Declared};
use finetuned_plugin_api::loss::{Needs, Statistic};
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
        Needs::of([Statistic::Value])
    }

    fn loss<'t>(&self, batch: &TapeBatch<'t>) -> Result<V<'t>, PluginError> {
        let mut losses = Vec::new();
        for (chosen, rejected) in batch.pairs()? {
            let (win, lose) = (chosen.value()?, rejected.value()?);
            super::report_rewards(batch, win.value(), lose.value());
            losses.push(-(win - lose).log_sigmoid() + (win + lose).square() * self.centering);
        }
        Ok(batch.sum(losses) / positive(batch.totals().pairs as f64))
    }
}
