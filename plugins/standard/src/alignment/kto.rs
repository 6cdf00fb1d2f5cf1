//! Kahneman-Tversky Optimization: preferences from single labelled answers.
//!
//! r = log π(y|x) − log π_ref(y|x) summed over the completion, and z is the
//! mean of the same over mismatched completions of the step, at least 0,
//! without gradient: an estimate of KL(π‖π_ref). The loss is the mean over
//! answers of
//!
//! - desirable: w_D (1 − σ(β (r − z))),
//! - undesirable: w_U (1 − σ(β (z − r)))
//!
//! (KTO: Model Alignment as Prospect Theoretic Optimization,
//! <https://arxiv.org/abs/2402.01306>).
//!
//! # Worked example
//! At the start r = z = 0: the loss is 0.5. Later β = 0.1, z = 1, a desirable
//! answer at r = 3: 1 − σ(0.2) = 0.4502, and an undesirable one at r = −1:
//! 1 − σ(0.2) as well. The derivative of the first by logp is
//! −β σ(0.2) σ(−0.2) / 2 = −0.0124 when the step has these two.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::alignment::{Alignment, AlignmentNeeds, DataKind, Declared};
use finetuned_plugin_api::loss::{Batch, BeforeStep, Needs, Role};
use finetuned_plugin_api::parameters::{Parameter, Values};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};
use finetuned_plugin_api::tape::{Formula, TapeBatch, V, positive};

pub const PLUGIN: BuiltIn = BuiltIn { descriptor, make: Make::Alignment(make) };

/// See the module's words.
pub struct Kto {
    pub beta: f64,
    pub desirable_weight: f64,
    pub undesirable_weight: f64,
}

fn descriptor() -> Descriptor {
    crate::described(
        "kto",
        Kind::Alignment,
        "Kahneman-Tversky Optimization: learns from single answers labelled good or bad.",
        "KTO: Model Alignment as Prospect Theoretic Optimization, https://arxiv.org/abs/2402.01306",
        vec![
            Parameter::number("beta", 0.1, "how strongly the policy is held to the reference").range(1e-6, 1e3),
            Parameter::number("desirable_weight", 1.0, "weight of good answers").range(0.0, f64::INFINITY),
            Parameter::number("undesirable_weight", 1.0, "weight of bad answers").range(0.0, f64::INFINITY),
        ],
    )
}

fn make(values: &Values) -> Result<Box<dyn Alignment>, PluginError> {
    let objective = Kto {
        beta: values.number("beta")?,
        desirable_weight: values.number("desirable_weight")?,
        undesirable_weight: values.number("undesirable_weight")?,
    };
    let needs = AlignmentNeeds { reference: true, kl_completions: true, ..AlignmentNeeds::only(DataKind::Labelled) };
    Ok(Box::new(Declared { needs, objective }))
}

impl Formula for Kto {
    fn needs(&self) -> Needs {
        Needs { reference_logp: true, before_step: BeforeStep::KlCompletions, ..Needs::default() }
    }

    /// z of the step.
    fn before_step(&self, step: &Batch) -> Result<Vec<f64>, PluginError> {
        let reference = step
            .reference_logp
            .ok_or_else(|| PluginError::Batch("kto: the batch before the step lacks reference_logp".into()))?;
        let logp = step.logp();
        let (mut sum, mut count) = (0.0, 0.0);
        for sequence in step.sequences.iter().filter(|sequence| sequence.role == Role::KlCompletion) {
            for i in sequence.tokens.clone().filter(|i| step.completion[*i] && step.weight[*i] != 0.0) {
                sum += f64::from(step.weight[i]) * (f64::from(logp[i]) - f64::from(reference[i]));
            }
            count += 1.0;
        }
        Ok(vec![f64::max(0.0, sum / positive(count))])
    }

    fn loss<'t>(&self, batch: &TapeBatch<'t>) -> Result<V<'t>, PluginError> {
        let &[kl] = batch.context() else {
            return Err(PluginError::Batch("kto: the batch lacks the step's KL, which before_step() gives".into()));
        };
        let totals = batch.totals();
        let answers = positive(totals.role(Role::Completion).sequences as f64);
        let mut losses = Vec::new();
        for answer in batch.sequences().filter(|answer| answer.role() == Role::Completion) {
            let ratio = answer.log_ratio();
            let (weight, margin, kind, count) = match answer.label() {
                Some(true) => (self.desirable_weight, ratio - kl, "chosen", totals.desirable),
                Some(false) => (self.undesirable_weight, kl - ratio, "rejected", totals.undesirable),
                None => return Err(PluginError::Batch("kto: an answer without a label".into())),
            };
            losses.push((1.0 - (margin * self.beta).sigmoid()) * weight);
            batch.metric(&format!("rewards/{kind}"), self.beta * ratio.value() / positive(count as f64));
            batch.metric(&format!("logps/{kind}"), answer.logp().value() / positive(count as f64));
            // The same in every micro-batch; its answers' part, so that it adds up to itself.
            batch.metric("kl", kl / answers);
        }
        Ok(batch.sum(losses) / answers)
    }
}
