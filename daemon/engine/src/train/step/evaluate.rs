//! The objective without gradient, for validation.

use finetuned_data::{DataKind, Examples, Row};
use finetuned_shaders::StatisticSet;

use super::loss::{LossCall, no_statistics, values, wanted};
use super::{StepResult, Trainer, add_metrics, not_finite};
use crate::error::EngineError;
use crate::metrics::TOKEN_ACCURACY;
use crate::model::context::Pass;
use crate::model::decoder::Keep;
use crate::train::micro_batch::MicroBatch;

impl Trainer {
    /// Computes the objective over all these rows as one batch, without gradient. The
    /// loss is a mean over trained tokens, as in training. `step` is the number of
    /// updates made before.
    ///
    /// # Errors
    /// A loss that is not finite, by name; a failing device.
    pub fn evaluate(&mut self, examples: &Examples, rows: &[Row], step: usize) -> Result<StepResult, EngineError> {
        loop {
            match self.evaluate_once(examples, rows, step) {
                Err(error) => self.take_less(error)?,
                result => return result,
            }
        }
    }

    fn evaluate_once(&mut self, examples: &Examples, rows: &[Row], step: usize) -> Result<StepResult, EngineError> {
        let ops = &self.ops.clone();
        let cut = self.cut(examples, rows)?;
        let mut result = StepResult { trained_tokens: cut.trained_tokens, ..StepResult::default() };
        let pass = Pass::evaluation(true);
        // Of rows to imitate: among answers that are compared, it says little.
        let imitates = examples.kind == DataKind::Supervised && self.heads.language;
        let wanted = StatisticSet { correct: imitates, ..wanted(&self.needs) };
        for documents in &cut.micro_batches {
            let micro = MicroBatch::new(documents, &self.needs);
            result.tokens += micro.batch.tokens.len();
            if self.nothing_to_learn(&micro) {
                continue;
            }
            let reference = self.reference_logp(documents)?;
            let forward = self.model.forward(ops, &micro.batch, &pass, Keep::Nothing)?;
            let head = self.model.head_input(ops, &forward, &self.heads.rows(&micro)?)?;
            drop(forward);
            let inputs = self.heads.cut(ops, &micro, &head.h)?;
            let statistics = match &inputs.language {
                Some(h) => ops.token_logp(h, &self.model.lm_head(), &micro.targets, wanted)?,
                None => no_statistics(&micro),
            };
            if wanted.correct {
                let correct = statistics.correct.iter().filter(|correct| **correct).count();
                let share = correct as f64 / cut.trained_tokens.max(1) as f64;
                add_metrics(&mut result.metrics, &[(TOKEN_ACCURACY.name.to_string(), share)]);
            }
            let values = values(ops, &self.model, &inputs)?;
            let call = LossCall {
                objective: &self.objective,
                needs: &self.needs,
                heads: self.heads,
                micro: &micro,
                reference: reference.as_deref(),
                cut: &cut,
            };
            call.evaluate(&statistics, values.as_deref(), &mut self.out)?;
            result.loss += self.out.loss;
            add_metrics(&mut result.metrics, &self.out.metrics);
        }
        if !result.loss.is_finite() {
            // The weights are those of the step that would come next.
            return Err(not_finite(step + 1, "the validation loss"));
        }
        Ok(result)
    }
}
