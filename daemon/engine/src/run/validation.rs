//! The validation loss of a run, the best weights by it, and an early stop.

use finetuned_data::Examples;
use finetuned_plugin_api::program::Scalars;

use super::{Run, checkpoint};
use crate::error::EngineError;
use crate::train::optimize::Rules;
use crate::vocabulary::{Event, Observer, TrainRequest};

/// The validation examples, one per row.
pub(super) struct Validation<'a> {
    pub examples: &'a Examples,
    pub rows: Vec<finetuned_data::Row>,
}

impl Validation<'_> {
    pub fn of(examples: &Examples) -> Option<Validation<'_>> {
        let rows: Vec<_> = (0..examples.len()).map(|i| finetuned_data::Row { examples: vec![i] }).collect();
        if rows.is_empty() { None } else { Some(Validation { examples, rows }) }
    }
}

impl Run {
    /// Measures the validation loss. Keeps the weights if they are the best so far, and
    /// decides on an early stop.
    pub(super) fn validate(
        &mut self,
        request: &TrainRequest,
        validation: &Validation,
        step: usize,
        rate: f64,
        observer: &mut dyn Observer,
    ) -> Result<f64, EngineError> {
        let ops = self.trainer.ops.clone();
        let scalars = Scalars { learning_rate: rate, step: step as u64 };
        let kept = self.trainer.rules.to_evaluation(&ops, &mut self.trainer.model, &scalars)?;
        let result = self.trainer.evaluate(validation.examples, &validation.rows, step)?;
        observer.event(&Event::Validation { step, loss: result.loss, tokens: result.trained_tokens });
        self.progress.last_validation = Some(result.loss);
        self.progress.last_metrics = result.metrics;
        if self.progress.best.is_none_or(|(_, best)| result.loss < best) {
            self.progress.best = Some((step, result.loss));
            self.progress.best_metrics.clone_from(&self.progress.last_metrics);
            self.progress.without_gain = 0;
            if request.recipe.train.keep_best {
                checkpoint::save_best(&request.out, &ops, &self.trainer.model)?;
            }
        } else {
            self.progress.without_gain += 1;
            let patience = request.recipe.train.early_stop_patience;
            if patience > 0 && self.progress.without_gain >= patience {
                self.progress.tally.stopped_early = true;
                let message = format!("stopped at step {step}: no better validation loss for {patience} validations");
                observer.event(&Event::Note { message });
            }
        }
        Rules::back_to_training(&mut self.trainer.model, kept);
        Ok(result.loss)
    }
}
