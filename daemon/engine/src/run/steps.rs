//! The loop over a run's steps.

use std::time::Instant;

use finetuned_data::Prepared;
use finetuned_plugin_api::abi::calls;

use super::validation::Validation;
use super::{Run, checkpoint, metrics, numbers, phase};
use crate::base::BaseModel;
use crate::error::EngineError;
use crate::train::step::StepResult;
use crate::vocabulary::{Control, Event, Observer, Outcome, StepMetrics, TrainRequest};

impl Run {
    /// Trains to the last step, or until told to stop.
    pub(super) fn train(
        mut self,
        request: &TrainRequest,
        base: &BaseModel,
        prepared: &Prepared,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, EngineError> {
        let recipe = &request.recipe;
        let validation = Validation::of(&prepared.validation);
        if self.progress.step == 0
            && let Some(validation) = &validation
        {
            phase(observer, "measuring the validation loss before training");
            let result = self.trainer.evaluate(validation.examples, &validation.rows, 0)?;
            self.progress.tally.validation_before = Some(result.loss);
            self.progress.last_validation = Some(result.loss);
            self.metrics.start(result.loss, &result.metrics)?;
            self.progress.metrics_before = result.metrics;
            observer.event(&Event::Validation { step: 0, loss: result.loss, tokens: result.trained_tokens });
        }
        while self.progress.step < self.total_steps && !self.progress.tally.stopped_early {
            let step = self.progress.step + 1;
            // A plugin's failure is told with its step.
            calls::set_step(step as u64);
            let started = Instant::now();
            let rate = self.learning_rate(recipe, step);
            let (rows, epoch_ends) = self.order.step(step);
            let mut cancelled = false;
            let mut between = |done: usize, count: usize| {
                if done > 0 {
                    observer.event(&Event::Progress { step, done, micro_batches: count });
                }
                cancelled = observer.control() == Control::Cancel;
                !cancelled
            };
            let Some(result) = self.trainer.step(&prepared.train, rows, step, rate, &mut between)? else {
                return Ok(Outcome::Cancelled { step: step - 1 });
            };
            let seconds = started.elapsed().as_secs_f64();
            self.keep_micro_batch(request, result.micro_batch_size, observer)?;
            self.count(step, &result, seconds);
            let last = step == self.total_steps;
            let due = match recipe.train.validation_every {
                0 => epoch_ends,
                every => step.is_multiple_of(every),
            };
            let mut measured = None;
            if let Some(validation) = validation.as_ref().filter(|_| due || last) {
                measured = Some(self.validate(request, validation, step, rate, observer)?);
            }
            let further = measured.map(|_| self.progress.last_metrics.as_slice()).unwrap_or_default();
            let line = StepMetrics {
                step,
                loss: result.loss,
                grad_norm: result.grad_norm,
                learning_rate: rate,
                tokens: result.tokens,
                trained_tokens: result.trained_tokens,
                seconds,
                tokens_per_second: result.tokens as f64 / seconds.max(1e-9),
                validation_loss: measured,
                extra: numbers(&result.metrics).chain(metrics::of_validation(further)).collect(),
            };
            self.metrics.step(&line)?;
            observer.event(&Event::Step(line));

            let control = observer.control();
            if control == Control::Cancel {
                return Ok(Outcome::Cancelled { step });
            }
            let finished = last || self.progress.tally.stopped_early;
            let every = recipe.checkpoint.every_steps;
            if control == Control::Stop || (!finished && every > 0 && step.is_multiple_of(every)) {
                self.progress.loss_state = self.trainer.loss_state()?;
                checkpoint::save(
                    &request.out,
                    &self.trainer,
                    &self.progress,
                    &self.file.plugins,
                    recipe.checkpoint.keep,
                )?;
                observer.event(&Event::Checkpoint { step });
                if control == Control::Stop && !finished {
                    return Ok(Outcome::Stopped { step });
                }
            }
        }
        self.finish(request, base, prepared, observer)
    }

    fn count(&mut self, step: usize, result: &StepResult, seconds: f64) {
        let progress = &mut self.progress;
        progress.step = step;
        let tally = &mut progress.tally;
        tally.tokens += result.tokens as u64;
        tally.trained_tokens += result.trained_tokens as u64;
        tally.seconds += seconds;
        tally.first_loss.get_or_insert(result.loss);
        tally.last_loss = Some(result.loss);
    }
}
