//! The gradients of one micro-batch: forward pass, heads, loss, backward pass.

use finetuned_plugin_api::loss::{Gradients as LossGradients, Needs, Statistic, TokenRule};
use finetuned_shaders::{Device, Tensor, TokenCoefficients, TokenStatistics};

use super::loss::{coefficients, no_statistics, separable_coefficients, values, wanted};
use super::not_finite;
use crate::error::EngineError;
use crate::model::decoder::{Decoder, Forward, HeadForward, Keep};
use crate::model::linear::Pass;
use crate::model::parameters::Gradients;
use crate::train::heads::{HeadInputs, Heads};
use crate::train::micro_batch::MicroBatch;

/// What one micro-batch is differentiated with: the parts of a trainer, or those of a
/// plan, whose tensors have no values.
pub(crate) struct Differentiation<'a> {
    pub ops: &'a Device,
    pub model: &'a Decoder,
    /// Gradients are added to these.
    pub gradients: &'a mut Gradients,
    /// Which heads the objective reads.
    pub heads: Heads,
    /// What the loss asks for.
    pub needs: &'a Needs,
    /// The loss's derivatives, if they are known before its value.
    pub rule: Option<TokenRule>,
    /// What the forward pass keeps.
    pub keep: Keep,
    pub pass: Pass,
}

/// The loss: from the statistics of the listed tokens and the sequences' values to its
/// derivatives by them.
pub(crate) type Loss<'a> =
    dyn FnMut(&TokenStatistics, Option<&[f32]>, &mut LossGradients) -> Result<(), EngineError> + 'a;

impl Differentiation<'_> {
    /// Runs the layers.
    pub fn forward(&self, micro: &MicroBatch) -> Result<Forward, EngineError> {
        Ok(self.model.forward(self.ops, &micro.batch, &self.pass, self.keep)?)
    }

    /// Runs the heads and the loss, which writes into `out`. Returns the gradient of the
    /// heads' input. The LM head is run once if the loss's derivatives are known
    /// beforehand, else again after the loss has answered.
    pub fn heads(
        &mut self,
        micro: &MicroBatch,
        forward: &Forward,
        loss: &mut Loss,
        out: &mut LossGradients,
    ) -> Result<(HeadForward, Tensor), EngineError> {
        let (ops, step) = (self.ops, self.pass.step as usize);
        let head = self.model.head_input(ops, forward, &self.heads.rows(micro)?)?;
        let inputs = self.heads.cut(ops, micro, &head.h)?;
        let values = values(ops, self.model, &inputs)?;
        if values.iter().flatten().any(|value| !value.is_finite()) {
            return Err(not_finite(step, "a sequence's value"));
        }
        let lm_head = self.model.lm_head();
        let wanted = wanted(self.needs);
        let dlanguage = match (&inputs.language, &self.rule) {
            (None, _) => {
                loss(&no_statistics(micro), values.as_deref(), out)?;
                None
            }
            (Some(h), Some(rule)) => {
                let coefficients = separable_coefficients(rule, &micro.weight);
                let dhead = self.gradients.get_mut(self.model.head);
                let (statistics, dh) =
                    ops.token_logp_fused(h, &lm_head, &micro.targets, wanted, &coefficients, dhead)?;
                check(&statistics, step)?;
                loss(&statistics, values.as_deref(), out)?;
                Some(dh)
            }
            // Through a frozen head only the gradient of its input is wanted, which is
            // linear in each token's derivative: one pass with derivatives of 1 now,
            // scaled by the loss's own once they are known.
            (Some(h), None) if self.needs.only_logp() && self.gradients.get(self.model.head).is_none() => {
                let ones = TokenCoefficients { logp: vec![1.0; micro.targets.len()], ..TokenCoefficients::default() };
                let (statistics, mut dh) = ops.token_logp_fused(h, &lm_head, &micro.targets, wanted, &ones, None)?;
                check(&statistics, step)?;
                loss(&statistics, values.as_deref(), out)?;
                ops.scale_rows(&mut dh, &out.derivatives[Statistic::Logp])?;
                Some(dh)
            }
            (Some(h), None) => {
                let statistics = ops.token_logp(h, &lm_head, &micro.targets, wanted)?;
                check(&statistics, step)?;
                loss(&statistics, values.as_deref(), out)?;
                let coefficients = coefficients(|statistic| out.derivatives[statistic].clone());
                let dhead = self.gradients.get_mut(self.model.head);
                Some(ops.token_logp_backward(h, &lm_head, &micro.targets, &coefficients, dhead)?)
            }
        };
        let dvalue = self.value_backward(&inputs, out)?;
        drop(inputs);
        let dh = HeadInputs { language: dlanguage, value: dvalue }.join(ops)?;
        Ok((head, dh))
    }

    /// Runs the layers backward from the gradient of the heads' input.
    pub fn backward(
        &mut self,
        micro: &MicroBatch,
        forward: Forward,
        head: HeadForward,
        dh: &Tensor,
    ) -> Result<(), EngineError> {
        Ok(self.model.backward(self.ops, &micro.batch, forward, head, dh, self.gradients, &self.pass)?)
    }

    /// Adds the value head's gradient. Returns that of its input.
    fn value_backward(&mut self, inputs: &HeadInputs, out: &LossGradients) -> Result<Option<Tensor>, EngineError> {
        let (Some(h), Some(head)) = (&inputs.value, &self.model.value_head) else { return Ok(None) };
        let dvalue = &out.derivatives[Statistic::Value];
        let dvalue = self.ops.upload(&[dvalue.len(), 1], dvalue)?;
        Ok(Some(head.backward(self.ops, &self.model.parameters, self.gradients, &dvalue, h)?))
    }
}

/// A model whose log-probabilities are not numbers has diverged, or its weights are
/// damaged. This is said before a plugin is blamed.
fn check(statistics: &TokenStatistics, step: usize) -> Result<(), EngineError> {
    if statistics.logp.iter().all(|l| l.is_finite()) {
        Ok(())
    } else {
        Err(not_finite(step, "a token's log-probability"))
    }
}
