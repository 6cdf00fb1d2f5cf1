//! The gradients of one micro-batch: forward pass, heads, loss, backward pass.

use finetuned_shaders::TokenCoefficients;

use super::cut::Cut;
use super::loss::{no_statistics, only_logp, separable_coefficients};
use super::{StepResult, Trainer, add_metrics, not_finite};
use crate::error::EngineError;
use crate::model::linear::Pass;
use crate::train::heads::HeadInputs;
use crate::train::micro_batch::{MicroBatch, Placed};

impl Trainer {
    /// Adds a micro-batch's gradients. The LM head is run once if the loss's
    /// derivatives are known beforehand, else again after the loss has answered.
    pub(super) fn forward_backward(
        &mut self,
        documents: &[Placed],
        cut: &Cut,
        pass: &Pass,
        step: usize,
        result: &mut StepResult,
    ) -> Result<(), EngineError> {
        let ops = self.ops.clone();
        let ops = ops.as_ref();
        let micro = MicroBatch::new(documents, &self.needs);
        result.tokens += micro.batch.tokens.len();
        if self.nothing_to_learn(&micro) {
            return Ok(());
        }
        let reference = self.reference_logp(documents)?;
        let forward = self.model.forward(ops, &micro.batch, pass, self.options.keep())?;
        let head = self.model.head_input(ops, &forward, &self.heads.rows(&micro)?)?;
        let inputs = self.heads.cut(ops, &micro, &head.h)?;
        let values = self.values(&inputs)?;
        if values.iter().flatten().any(|value| !value.is_finite()) {
            return Err(not_finite(step, "a sequence's value"));
        }
        let rule = self.objective.loss().separable(&cut.totals);
        let dlanguage = match (&inputs.language, rule) {
            (None, _) => {
                self.call_loss(&micro, &no_statistics(&micro), reference.as_deref(), values.as_deref(), cut)?;
                None
            }
            (Some(h), Some(rule)) => {
                let coefficients = separable_coefficients(&rule, &micro.weight);
                let (statistics, dh) = ops.token_logp_fused(
                    h,
                    &self.model.lm_head(),
                    &micro.targets,
                    self.wanted(),
                    &coefficients,
                    self.gradients.get_mut(self.model.head),
                )?;
                self.check_statistics(&statistics, step)?;
                self.call_loss(&micro, &statistics, reference.as_deref(), values.as_deref(), cut)?;
                Some(dh)
            }
            // Through a frozen head only its input's gradient is wanted, which is
            // linear in each token's derivative: one pass with derivatives of 1 now,
            // scaled by the loss's own once they are known.
            (Some(h), None) if only_logp(&self.needs) && self.gradients.get(self.model.head).is_none() => {
                let ones = TokenCoefficients { logp: vec![1.0; micro.targets.len()], ..TokenCoefficients::default() };
                let lm_head = self.model.lm_head();
                let (statistics, mut dh) =
                    ops.token_logp_fused(h, &lm_head, &micro.targets, self.wanted(), &ones, None)?;
                self.check_statistics(&statistics, step)?;
                self.call_loss(&micro, &statistics, reference.as_deref(), values.as_deref(), cut)?;
                ops.scale_rows(&mut dh, &self.out.dlogp)?;
                Some(dh)
            }
            (Some(h), None) => {
                let lm_head = self.model.lm_head();
                let statistics = ops.token_logp(h, &lm_head, &micro.targets, self.wanted())?;
                self.check_statistics(&statistics, step)?;
                self.call_loss(&micro, &statistics, reference.as_deref(), values.as_deref(), cut)?;
                let coefficients = TokenCoefficients {
                    logp: self.out.dlogp.clone(),
                    lse: self.out.dlse.clone().unwrap_or_default(),
                    entropy: self.out.dentropy.clone().unwrap_or_default(),
                    mean_logp: self.out.dmean_logp.clone().unwrap_or_default(),
                };
                Some(ops.token_logp_backward(
                    h,
                    &self.model.lm_head(),
                    &micro.targets,
                    &coefficients,
                    self.gradients.get_mut(self.model.head),
                )?)
            }
        };
        let dvalue = self.value_backward(&inputs)?;
        drop(inputs);
        let dh = HeadInputs { language: dlanguage, value: dvalue }.join(ops)?;
        result.loss += self.out.loss;
        add_metrics(&mut result.metrics, &self.out.metrics);
        self.model.backward(ops, &micro.batch, forward, head, &dh, &mut self.gradients, pass)?;
        Ok(())
    }
}
