//! A run from request to finished files: what the worker and `finetune train`
//! call.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use finetuned_data::{Examples, Prepared};
use finetuned_formats::read_peft;
use finetuned_plugin_api::abi::calls;
use finetuned_plugin_api::program::Scalars;
use finetuned_plugin_api::registry::Registry;

use super::checkpoint::{self, Progress};
use super::heads::Heads;
use super::metrics_file::{self, MetricsFile};
use super::prepare::{self, Opened};
use super::schedule::{learning_rate, warmup_steps};
use super::state::{Identity, RunFile};
use super::step::{StepOptions, StepResult, Trainer};
use super::units::Order;
use super::used::{self, UsedPlugin};
use super::{optimize::Rules, output};
use crate::api::{Control, Observer, Outcome, TrainRequest};
use crate::error::EngineError;
use crate::event::{Event, StepMetrics, Summary, VALIDATION_AFTER, VALIDATION_BEFORE};
use crate::plan;
use crate::recipe::Method;

pub(crate) fn train(request: &TrainRequest, observer: &mut dyn Observer) -> Result<Outcome, EngineError> {
    let out = &request.out;
    std::fs::create_dir_all(out).map_err(|e| EngineError::Io { path: out.clone(), reason: e.to_string() })?;
    let _lock = lock(out)?;
    if request.fresh {
        checkpoint::clear(out);
        RunFile::remove(out)?;
    }
    phase(observer, "reading the model");
    let opened = prepare::open_model(&request.model)?;
    phase(observer, "reading the dataset");
    let prepared = prepare::read_data(request, &opened)?;
    observer.event(&Event::Prepared { report: Box::new(prepared.report.clone()) });
    let identity = Identity::of(request, &opened.files, &prepared.report)?;
    let registry = prepare::registry(&request.plugins)?;
    let plugins = used::used(&request.recipe, &registry, &request.plugins)?;
    let found = RunFile::read(out)?;
    if let Some(run) = &found {
        if let Some(difference) = run.identity.difference(&identity) {
            return Err(EngineError::OtherRun { out: out.clone(), difference });
        }
        if !request.accept_plugin_change {
            used::refuse_change(&run.plugins, &plugins)?;
        }
        if let Some(summary) = &run.summary {
            return Ok(Outcome::AlreadyFinished(Box::new(summary.clone())));
        }
    }
    let begin = Begin { identity, plugins, found };
    let run = Run::start(request, &registry, &opened, &prepared, begin, observer)?;
    run.train_and_save(request, &opened, &prepared, observer)
}

/// What is known of a run before its model is loaded.
struct Begin {
    identity: Identity,
    plugins: Vec<UsedPlugin>,
    /// What `out` holds of it.
    found: Option<RunFile>,
}

/// A run whose model is loaded and, where there is a checkpoint, restored.
struct Run {
    trainer: Trainer,
    order: Order,
    total_steps: usize,
    warmup: usize,
    progress: Progress,
    metrics: MetricsFile,
    file: RunFile,
}

impl Run {
    fn start(
        request: &TrainRequest,
        registry: &Registry,
        opened: &Opened,
        prepared: &Prepared,
        begin: Begin,
        observer: &mut dyn Observer,
    ) -> Result<Run, EngineError> {
        let Begin { identity, plugins, found } = begin;
        let recipe = &request.recipe;
        let objective = registry.objective(&recipe.loss.name, &recipe.loss.parameters)?;
        let optimizer = prepare::optimizer(recipe, registry)?;
        let ops = prepare::device(&request.device, request.threads)?;
        let order = Order::of(&prepared.train, &recipe.train);
        let total_steps = recipe.train.steps.unwrap_or_else(|| order.steps_of_epochs(recipe.train.epochs));
        let plan::Planned { plan: planned, step_bytes } =
            plan::of_run(request, registry, &opened.files, prepared, total_steps, ops.as_ref())?;
        if !planned.fits {
            return Err(EngineError::TooLarge {
                device: planned.device,
                needed_bytes: planned.peak_bytes,
                available_bytes: planned.available_bytes,
                remedy: planned.remedy.unwrap_or_default(),
            });
        }
        // The cut into micro-batches decides the order of sums, so a resumed run
        // keeps the one it began with.
        let micro_batch_size = found.as_ref().map_or(planned.micro_batch_size, |run| run.micro_batch_size);
        if recipe.train.offload_activations {
            observer.event(&Event::Note { message: offloading(&planned, ops.info().on_host) });
        }
        let info = ops.info();
        if info.product_rounding > 0.0 {
            let message = format!(
                "matrix products take operands of {} on the GPU's tensor cores, sums are f32; \
                 /f32 behind the device's name computes without",
                info.products()
            );
            observer.event(&Event::Note { message });
        }
        observer.event(&Event::Planned { plan: Box::new(planned) });

        phase(observer, "loading the weights");
        let start = request.adapter.as_deref().map(read_peft).transpose()?;
        let context = prepare::longest_document(prepared);
        let heads = Heads::of(&objective);
        let (model, fresh) =
            prepare::load_for_training(ops.as_ref(), &opened.files, recipe, start.as_ref(), heads, context)?;
        let options = StepOptions {
            micro_batch_size,
            gradient_checkpointing: recipe.train.gradient_checkpointing,
            offload_activations: recipe.train.offload_activations && !ops.info().on_host,
            max_grad_norm: recipe.train.max_grad_norm,
            seed: recipe.train.seed,
        };
        let mut trainer = Trainer::new(ops, model, objective, optimizer, options, fresh)?;
        if let Some(bytes) = trainer.rules.copied_bytes() {
            let message = format!(
                "the optimizer '{}' steps on host memory, in one thread: every step copies {:.1} MB there and back; an update rule given as a program would not",
                recipe.optimizer.name,
                bytes as f64 / 1e6
            );
            observer.event(&Event::Note { message });
        }
        trainer.check_data(&prepared.train)?;

        let file = RunFile { identity, micro_batch_size, plugins, summary: None };
        file.write(&request.out)?;
        let (restored, notes) = if found.is_some() {
            checkpoint::resume(&request.out, &mut trainer)?
        } else {
            checkpoint::clear(&request.out);
            (None, Vec::new())
        };
        // All that lasts is there now; what steps make lies in memory of its own.
        let fits = trainer.reserve(step_bytes)?;
        for message in notes {
            observer.event(&Event::Note { message });
        }
        let metrics = MetricsFile::open(&request.out, restored.as_ref().map(|p| p.step))?;
        let progress = restored.unwrap_or_default();
        observer.event(&Event::Started { total_steps, resumed_from: progress.step });
        let warmup = warmup_steps(&recipe.train, total_steps);
        let mut run = Run { trainer, order, total_steps, warmup, progress, metrics, file };
        run.keep_micro_batch(request, fits, observer)?;
        Ok(run)
    }

    fn train_and_save(
        mut self,
        request: &TrainRequest,
        opened: &Opened,
        prepared: &Prepared,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, EngineError> {
        let recipe = &request.recipe;
        let validation = Validation::of(&prepared.validation);
        if self.progress.step == 0
            && let Some(validation) = &validation
        {
            phase(observer, "measuring the held-out loss before training");
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
            let rate =
                learning_rate(recipe.train.schedule, recipe.learning_rate(), self.warmup, step, self.total_steps);
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
            let at_validation = measured.map(|_| self.progress.last_metrics.as_slice()).unwrap_or_default();
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
                extra: numbers(&result.metrics).chain(metrics_file::of_validation(at_validation)).collect(),
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
                self.progress.loss_state = self.trainer.loss_state();
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
        self.finish(request, opened, prepared, observer)
    }

    /// Records that memory ran short, so that a resumed run begins with what
    /// fits.
    fn keep_micro_batch(
        &mut self,
        request: &TrainRequest,
        now: usize,
        observer: &mut dyn Observer,
    ) -> Result<(), EngineError> {
        let before = self.file.micro_batch_size;
        if now == before {
            return Ok(());
        }
        self.file.micro_batch_size = now;
        self.file.write(&request.out)?;
        let message = format!(
            "memory ran short: micro-batches of {now} instead of {before} from here on; the batch stays the same"
        );
        observer.event(&Event::Note { message });
        Ok(())
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

    /// The held-out loss; keeps the weights if they are the best so far, and
    /// decides on an early stop.
    fn validate(
        &mut self,
        request: &TrainRequest,
        validation: &Validation,
        step: usize,
        rate: f64,
        observer: &mut dyn Observer,
    ) -> Result<f64, EngineError> {
        let ops = self.trainer.ops.clone();
        let scalars = Scalars { learning_rate: rate, step: step as u64 };
        let kept = self.trainer.rules.to_evaluation(ops.as_ref(), &mut self.trainer.model, &scalars)?;
        let result = self.trainer.evaluate(validation.examples, &validation.rows, step)?;
        observer.event(&Event::Validation { step, loss: result.loss, tokens: result.trained_tokens });
        self.progress.last_validation = Some(result.loss);
        self.progress.last_metrics = result.metrics;
        if self.progress.best.is_none_or(|(_, best)| result.loss < best) {
            self.progress.best = Some((step, result.loss));
            self.progress.best_metrics.clone_from(&self.progress.last_metrics);
            self.progress.without_gain = 0;
            if request.recipe.train.keep_best {
                checkpoint::save_best(&request.out, ops.as_ref(), &self.trainer.model)?;
            }
        } else {
            self.progress.without_gain += 1;
            let patience = request.recipe.train.early_stop_patience;
            if patience > 0 && self.progress.without_gain >= patience {
                self.progress.tally.stopped_early = true;
                let message = format!("stopped at step {step}: no better held-out loss for {patience} validations");
                observer.event(&Event::Note { message });
            }
        }
        Rules::back_to_training(&mut self.trainer.model, kept);
        Ok(result.loss)
    }

    fn finish(
        mut self,
        request: &TrainRequest,
        opened: &Opened,
        prepared: &Prepared,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, EngineError> {
        phase(observer, "saving and reading back");
        let ops = self.trainer.ops.clone();
        let (_, peak_bytes) = ops.allocated_bytes();
        let progress = self.progress;
        let keep_best = request.recipe.train.keep_best;
        let mut kept_step = progress.step;
        let mut validation_after = progress.last_validation.filter(|_| progress.best.is_some());
        let mut metrics_after = &progress.last_metrics;
        let rate = learning_rate(
            request.recipe.train.schedule,
            request.recipe.learning_rate(),
            self.warmup,
            progress.step.max(1),
            self.total_steps,
        );
        let scalars = Scalars { learning_rate: rate, step: progress.step as u64 };
        match progress.best.filter(|(step, _)| keep_best && *step != progress.step) {
            Some((step, loss)) => {
                if checkpoint::load_best(&request.out, ops.as_ref(), &mut self.trainer.model)? {
                    kept_step = step;
                    validation_after = Some(loss);
                    metrics_after = &progress.best_metrics;
                    let message = format!("the weights of step {step} are kept: their held-out loss is the best");
                    observer.event(&Event::Note { message });
                }
            }
            None => {
                self.trainer.rules.to_evaluation(ops.as_ref(), &mut self.trainer.model, &scalars)?;
            }
        }
        let probe = probe_tokens(&prepared.train);
        let (ops, model) = self.trainer.into_model();
        let reload_difference = match request.recipe.method {
            Method::Full => output::save_model(&ops, model, &opened.files, &request.out, &probe)?,
            Method::Lora | Method::Qlora => output::save_adapter(&ops, model, &request.model, &request.out, &probe)?,
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

fn numbers(metrics: &[(String, f64)]) -> impl Iterator<Item = (String, serde_json::Value)> + '_ {
    metrics.iter().map(|(name, value)| (name.clone(), (*value).into()))
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

/// The held-out examples, each a row of its own.
struct Validation<'a> {
    examples: &'a Examples,
    rows: Vec<finetuned_data::Row>,
}

impl Validation<'_> {
    fn of(examples: &Examples) -> Option<Validation<'_>> {
        let rows: Vec<_> = (0..examples.len()).map(|i| finetuned_data::Row { examples: vec![i] }).collect();
        if rows.is_empty() { None } else { Some(Validation { examples, rows }) }
    }
}

/// Tokens of the first example, for the comparison after saving.
fn probe_tokens(examples: &Examples) -> Vec<u32> {
    let first = match examples {
        Examples::Supervised(list) => list.first().map(|e| e.tokens.clone()),
        Examples::Pairs(list) => list.first().map(|e| [&e.prompt[..], &e.chosen].concat()),
        Examples::Labelled(list) => list.first().map(|e| [&e.prompt[..], &e.completion].concat()),
    };
    first.unwrap_or_else(|| vec![0])
}

/// What `train.offload_activations` comes to.
fn offloading(plan: &plan::Plan, on_host: bool) -> String {
    if on_host {
        return "train.offload_activations changes nothing on the CPU, whose memory is the host's".into();
    }
    let megabytes = plan.offloaded_bytes as f64 / 1e6;
    format!(
        "the layers' inputs wait in host memory: up to {megabytes:.1} MB in a step, which {} does not hold",
        plan.device
    )
}

fn phase(observer: &mut dyn Observer, name: &str) {
    observer.event(&Event::Phase { name: name.to_string() });
}

/// One process a folder: a second one would tear the first one's files.
fn lock(out: &Path) -> Result<File, EngineError> {
    let path = out.join("run.lock");
    let fail = |reason: String| EngineError::Io { path: path.clone(), reason };
    let file = File::create(&path).map_err(|e| fail(e.to_string()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(fail("another process is training into this folder".into())),
        Err(std::fs::TryLockError::Error(e)) => Err(fail(e.to_string())),
    }
}
