//! Opening a run: its device, plan, model and checkpoint.

use finetuned_data::Prepared;
use finetuned_formats::read_peft;
use finetuned_plugin_api::registry::Registry;

use super::checkpoint;
use super::identity::{Identity, RunFile};
use super::metrics::MetricsFile;
use super::{Run, phase};
use crate::base::BaseModel;
use crate::error::EngineError;
use crate::plugins::used::UsedPlugin;
use crate::train::heads::Heads;
use crate::train::load::load_for_training;
use crate::train::order::Order;
use crate::train::schedule::warmup_steps;
use crate::train::step::{StepOptions, Trainer};
use crate::vocabulary::{Event, Observer, Plan, TrainRequest};
use crate::{dataset, devices, plan, plugins};

/// What is known of a run before its model is loaded.
pub(super) struct Begin {
    pub identity: Identity,
    pub plugins: Vec<UsedPlugin>,
    /// What `out` holds of it.
    pub found: Option<RunFile>,
}

impl Run {
    /// Opens the device, plans, loads the model, and restores a checkpoint.
    ///
    /// # Errors
    /// What the run cannot begin with.
    pub(super) fn open(
        request: &TrainRequest,
        registry: &Registry,
        base: &BaseModel,
        prepared: &Prepared,
        begin: Begin,
        observer: &mut dyn Observer,
    ) -> Result<Run, EngineError> {
        let Begin { identity, plugins, found } = begin;
        let recipe = &request.recipe;
        let objective = registry.objective(&recipe.loss.name, &recipe.loss.parameters)?;
        let optimizer = plugins::optimizer(recipe, registry)?;
        let ops = devices::open(&request.device, request.threads)?;
        let order = Order::of(&prepared.train, &recipe.train);
        let total_steps = recipe.train.steps.unwrap_or_else(|| order.steps_of_epochs(recipe.train.epochs));
        let plan::Planned { plan: planned, step_bytes } =
            plan::of_run(request, registry, &base.files, prepared, total_steps, &ops)?;
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
        let context = dataset::longest_document(prepared);
        let heads = Heads::of(&objective);
        let (config, source) = (&base.files.config, base.files.tensors.as_ref());
        let (model, fresh) = load_for_training(&ops, config, source, recipe, start.as_ref(), heads, context)?;
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
}

/// What `train.offload_activations` comes to.
fn offloading(plan: &Plan, on_host: bool) -> String {
    if on_host {
        return "train.offload_activations changes nothing on the CPU, whose memory is the host's".into();
    }
    let megabytes = plan.offloaded_bytes as f64 / 1e6;
    format!(
        "the layers' inputs wait in host memory: up to {megabytes:.1} MB in a step, which {} does not hold",
        plan.device
    )
}
