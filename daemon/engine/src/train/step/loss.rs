//! What the loss is handed for a micro-batch, and what comes back.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::loss::{self, Needs, TokenRule};
use finetuned_shaders::{StatisticSet, Tensor, TokenCoefficients, TokenStatistics};

use super::cut::Cut;
use super::{Trainer, not_finite};
use crate::error::EngineError;
use crate::train::heads::HeadInputs;
use crate::train::micro_batch::{MicroBatch, Placed};

impl Trainer {
    pub(super) fn reference_logp(&mut self, documents: &[Placed]) -> Result<Option<Vec<f32>>, EngineError> {
        let Some(reference) = self.reference.as_mut() else { return Ok(None) };
        Ok(Some(reference.logp(self.ops.as_ref(), &mut self.model, documents, &self.needs)?))
    }

    /// A micro-batch that gives no head a row.
    pub(super) fn nothing_to_learn(&self, micro: &MicroBatch) -> bool {
        micro.targets.is_empty() && (!self.heads.value || micro.sequences.is_empty())
    }

    /// The value head's number for each sequence, where the objective asks.
    pub(super) fn values(&self, inputs: &HeadInputs) -> Result<Option<Vec<f32>>, EngineError> {
        let (Some(h), Some(head)) = (&inputs.value, &self.model.value_head) else { return Ok(None) };
        let values = head.forward(self.ops.as_ref(), &self.model.parameters, h)?;
        Ok(Some(self.ops.read(&values)?))
    }

    /// From the loss's derivatives by the values to the head's own gradient and
    /// that of its input.
    pub(super) fn value_backward(&mut self, inputs: &HeadInputs) -> Result<Option<Tensor>, EngineError> {
        let (Some(h), Some(head), Some(dvalue)) = (&inputs.value, &self.model.value_head, &self.out.dvalue) else {
            return Ok(None);
        };
        let dvalue = self.ops.upload(&[dvalue.len(), 1], dvalue)?;
        Ok(Some(head.backward(self.ops.as_ref(), &self.model.parameters, &mut self.gradients, &dvalue, h)?))
    }

    /// Evaluates the loss into `self.out` and checks what came back.
    pub(super) fn call_loss(
        &mut self,
        micro: &MicroBatch,
        statistics: &TokenStatistics,
        reference: Option<&[f32]>,
        values: Option<&[f32]>,
        cut: &Cut,
    ) -> Result<(), EngineError> {
        let batch = loss::Batch {
            logp: &statistics.logp,
            entropy: self.needs.entropy.then_some(&statistics.entropy),
            lse: self.needs.lse.then_some(&statistics.lse),
            mean_logp: self.needs.mean_logp.then_some(&statistics.mean_logp),
            reference_logp: reference,
            values,
            weight: &micro.weight,
            completion: &micro.completion,
            token: &micro.targets,
            sequences: &micro.sequences,
            totals: &cut.totals,
            context: &cut.context,
        };
        self.objective.loss().evaluate(&batch, &mut self.out)?;
        self.out.check(&self.needs, &batch)?;
        if !self.heads.language && self.out.dlogp.iter().any(|d| *d != 0.0) {
            return Err(PluginError::Failed(
                "the loss derives by log-probabilities, which a loss that asks for values alone is not given; \
                 let it ask for another token statistic (lse) too"
                    .into(),
            )
            .into());
        }
        Ok(())
    }

    pub(super) fn wanted(&self) -> StatisticSet {
        StatisticSet { entropy: self.needs.entropy, mean_logp: self.needs.mean_logp, correct: false }
    }

    /// A model whose log-probabilities are not numbers has diverged, or its
    /// weights are damaged; said before a plugin is blamed.
    pub(super) fn check_statistics(&self, statistics: &TokenStatistics, step: usize) -> Result<(), EngineError> {
        if statistics.logp.iter().all(|l| l.is_finite()) {
            Ok(())
        } else {
            Err(not_finite(step, "a token's log-probability"))
        }
    }
}

/// What a loss that reads the value head alone is handed: zeros for the
/// log-probabilities of the trained tokens, which nobody computed.
pub(super) fn no_statistics(micro: &MicroBatch) -> TokenStatistics {
    TokenStatistics { logp: vec![0.0; micro.targets.len()], ..TokenStatistics::default() }
}

/// Whether a loss reads no statistic but `logp`.
pub(crate) fn only_logp(needs: &Needs) -> bool {
    !(needs.entropy || needs.lse || needs.mean_logp)
}

pub(super) fn separable_coefficients(rule: &TokenRule, weight: &[f32]) -> TokenCoefficients {
    let each = |coefficient: f64| -> Vec<f32> {
        if coefficient == 0.0 {
            return Vec::new();
        }
        weight.iter().map(|w| TokenRule::derivative(coefficient, *w)).collect()
    };
    TokenCoefficients {
        logp: each(rule.logp),
        lse: each(rule.lse),
        entropy: each(rule.entropy),
        mean_logp: each(rule.mean_logp),
    }
}
