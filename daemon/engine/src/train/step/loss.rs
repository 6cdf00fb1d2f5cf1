//! What the loss is handed for a micro-batch, and the check of what comes back.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::loss::{self, Gradients as LossGradients, Needs, PerStatistic, Statistic, TokenRule};
use finetuned_plugin_api::registry::Objective;
use finetuned_shaders::{Device, StatisticSet, TokenCoefficients, TokenStatistics};

use super::Trainer;
use super::cut::Cut;
use crate::error::EngineError;
use crate::model::decoder::Decoder;
use crate::train::heads::{HeadInputs, Heads};
use crate::train::micro_batch::{MicroBatch, Placed};

/// A call of the loss for one micro-batch.
pub(super) struct LossCall<'a> {
    pub objective: &'a Objective,
    pub needs: &'a Needs,
    pub heads: Heads,
    pub micro: &'a MicroBatch,
    /// Log-probabilities under the reference policy, if the loss asks for them.
    pub reference: Option<&'a [f32]>,
    /// The batch that the micro-batch is a part of.
    pub cut: &'a Cut<'a>,
}

impl LossCall<'_> {
    /// Evaluates the loss into `out`.
    ///
    /// # Errors
    /// What the loss reports; derivatives that break its contract.
    pub fn evaluate(
        &self,
        statistics: &TokenStatistics,
        values: Option<&[f32]>,
        out: &mut LossGradients,
    ) -> Result<(), EngineError> {
        let LossCall { needs, micro, cut, .. } = self;
        let batch = loss::Batch {
            statistics: PerStatistic::from_fn(|statistic| {
                let computed = match statistic {
                    Statistic::Logp => Some(&statistics.logp[..]),
                    Statistic::MeanLogp => Some(&statistics.mean_logp[..]),
                    Statistic::Entropy => Some(&statistics.entropy[..]),
                    Statistic::Lse => Some(&statistics.lse[..]),
                    Statistic::Value => values,
                };
                computed.filter(|_| needs.asks(statistic))
            }),
            reference_logp: self.reference,
            weight: &micro.weight,
            completion: &micro.completion,
            token: &micro.targets,
            sequences: &micro.sequences,
            totals: &cut.totals,
            context: &cut.context,
        };
        self.objective.loss().evaluate(&batch, out)?;
        out.check(needs, &batch)?;
        if !self.heads.language && out.derivatives[Statistic::Logp].iter().any(|d| *d != 0.0) {
            return Err(PluginError::Failed(
                "the loss derives by log-probabilities, which a loss that asks for values alone is not given; \
                 let it ask for another token statistic (lse) too"
                    .into(),
            )
            .into());
        }
        Ok(())
    }
}

impl Trainer {
    /// Log-probabilities under the reference policy, if the loss asks for them.
    pub(super) fn reference_logp(&mut self, documents: &[Placed]) -> Result<Option<Vec<f32>>, EngineError> {
        let Some(reference) = self.reference.as_mut() else { return Ok(None) };
        Ok(Some(reference.logp(&self.ops, &mut self.model, documents, &self.needs)?))
    }

    /// Whether a micro-batch gives no head a row.
    pub(super) fn nothing_to_learn(&self, micro: &MicroBatch) -> bool {
        micro.targets.is_empty() && (!self.heads.value || micro.sequences.is_empty())
    }
}

/// The value head's number per sequence, if the objective reads that head.
pub(super) fn values(ops: &Device, model: &Decoder, inputs: &HeadInputs) -> Result<Option<Vec<f32>>, EngineError> {
    let (Some(h), Some(head)) = (&inputs.value, &model.value_head) else { return Ok(None) };
    let values = head.forward(ops, &model.parameters, h)?;
    Ok(Some(ops.read(&values)?))
}

/// The statistics that a loss asks for beside `logp`.
pub(super) fn wanted(needs: &Needs) -> StatisticSet {
    let asks = |statistic| needs.asks(statistic);
    StatisticSet { entropy: asks(Statistic::Entropy), mean_logp: asks(Statistic::MeanLogp), correct: false }
}

/// What a loss that reads the value head alone is handed: zeros for the
/// log-probabilities of the trained tokens, which nobody computed.
pub(super) fn no_statistics(micro: &MicroBatch) -> TokenStatistics {
    TokenStatistics { logp: vec![0.0; micro.targets.len()], ..TokenStatistics::default() }
}

/// A rule's derivatives for tokens of these weights.
pub(super) fn separable_coefficients(rule: &TokenRule, weight: &[f32]) -> TokenCoefficients {
    let each = |coefficient: f64| -> Vec<f32> {
        if coefficient == 0.0 {
            return Vec::new();
        }
        weight.iter().map(|w| TokenRule::derivative(coefficient, *w)).collect()
    };
    coefficients(|statistic| each(rule.coefficients[statistic]))
}

/// The device's coefficients by statistic. Those of the value head go another way.
pub(super) fn coefficients(of: impl Fn(Statistic) -> Vec<f32>) -> TokenCoefficients {
    TokenCoefficients {
        logp: of(Statistic::Logp),
        lse: of(Statistic::Lse),
        entropy: of(Statistic::Entropy),
        mean_logp: of(Statistic::MeanLogp),
    }
}
