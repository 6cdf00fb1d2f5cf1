//! The end of a run: its weights written, read back and handed out.

use std::path::Path;

use finetuned_data::Prepared;
use finetuned_plugin_api::program::Scalars;

use super::{Run, checkpoint, numbers, output, phase};
use crate::base::BaseModel;
use crate::dataset;
use crate::error::EngineError;
use crate::recipe::Method;
use crate::vocabulary::{Event, Observer, Outcome, Summary, TrainRequest, VALIDATION_AFTER, VALIDATION_BEFORE};

impl Run {
    /// Writes the output and the summary.
    pub(super) fn finish(
        mut self,
        request: &TrainRequest,
        base: &BaseModel,
        prepared: &Prepared,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, EngineError> {
        phase(observer, "saving and reading back");
        let ops = self.trainer.ops.clone();
        let (_, peak_bytes) = ops.allocated_bytes();
        let rate = self.learning_rate(&request.recipe, self.progress.step.max(1));
        let progress = self.progress;
        let keep_best = request.recipe.train.keep_best;
        let mut kept_step = progress.step;
        let mut validation_after = progress.last_validation.filter(|_| progress.best.is_some());
        let mut metrics_after = &progress.last_metrics;
        let scalars = Scalars { learning_rate: rate, step: progress.step as u64 };
        match progress.best.filter(|(step, _)| keep_best && *step != progress.step) {
            Some((step, loss)) => {
                if checkpoint::load_best(&request.out, &ops, &mut self.trainer.model)? {
                    kept_step = step;
                    validation_after = Some(loss);
                    metrics_after = &progress.best_metrics;
                    let message = format!("the weights of step {step} are kept: their validation loss is the best");
                    observer.event(&Event::Note { message });
                }
            }
            None => {
                self.trainer.rules.to_evaluation(&ops, &mut self.trainer.model, &scalars)?;
            }
        }
        let probe = dataset::probe_tokens(&prepared.train);
        let (ops, model) = self.trainer.into_model();
        let reload_difference = match request.recipe.method {
            Method::Full => output::save_model(&ops, model, &base.files, &request.out, &probe)?,
            Method::Lora | Method::Qlora => {
                output::save_adapter(&ops, model, Path::new(&request.recipe.base), &request.out, &probe)?
            }
        };
        let summary = Summary {
            steps: progress.step,
            tally: progress.tally.clone(),
            validation_after,
            kept_step,
            peak_bytes,
            output: request.out.display().to_string(),
            reload_difference,
            extra: validation_numbers(&progress.metrics_before, metrics_after),
        };
        self.file.summary = Some(summary.clone());
        self.file.write(&request.out)?;
        checkpoint::clear(&request.out);
        observer.event(&Event::Finished(Box::new(summary.clone())));
        Ok(Outcome::Finished(Box::new(summary)))
    }
}

/// The numbers of the validations before and after training, if there are any; see
/// [`Summary::change`].
fn validation_numbers(before: &[(String, f64)], after: &[(String, f64)]) -> serde_json::Map<String, serde_json::Value> {
    [(VALIDATION_BEFORE, before), (VALIDATION_AFTER, after)]
        .into_iter()
        .filter(|(_, metrics)| !metrics.is_empty())
        .map(|(key, metrics)| (key.to_string(), serde_json::Value::Object(numbers(metrics).collect())))
        .collect()
}
