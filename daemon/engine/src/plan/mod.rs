//! What a run will take: bytes by part and time, before it starts.
//!
//! Bytes are counted from the same shapes that the step allocates, so the plan
//! is arithmetic, not a guess; time is those products over a rate measured for
//! a moment on the device.

mod fit;
mod footprint;
mod remedy;

use std::num::NonZeroUsize;
use std::path::Path;

use finetuned_data::{DataKind, Prepared};
use finetuned_formats::{ModelFiles, read_peft};
use finetuned_plugin_api::registry::Registry;
use finetuned_shaders::Device;

use self::fit::largest_micro_batch;
pub(crate) use self::footprint::Footprint;
use self::remedy::remedy;
use crate::base::BaseModel;
use crate::dataset;
use crate::devices::{self, memory, rate::matrix_rate};
use crate::error::EngineError;
use crate::plugins;
use crate::recipe::Method;
use crate::train::heads::Heads;
use crate::train::order::Order;
use crate::train::step::StepBytes;
use crate::vocabulary::{Plan, TrainRequest, part};

/// What a process of this program holds beside the model: code, tokenizer,
/// allocator slack. Measured on a run of SmolLM2-135M.
const PROCESS_BYTES: u64 = 60 << 20;

/// A micro-batch chosen by itself takes about this many tokens: more makes the
/// matrix products no faster on a CPU and costs memory.
const COMFORTABLE_TOKENS: usize = 1024;

/// Share of a device's matrix-product rate that a whole step reaches; measured,
/// see BENCHMARKS.md.
const STEP_EFFICIENCY: f64 = 0.8;

/// Plans a request without training.
///
/// # Errors
/// What training would refuse before its first step.
pub fn plan(request: &TrainRequest) -> Result<Plan, EngineError> {
    let opened = BaseModel::open(Path::new(&request.recipe.base))?;
    let prepared = dataset::read(request, &opened)?;
    let ops = devices::open(&request.device, request.threads)?;
    let registry = plugins::registry(&request.plugins)?;
    let order = Order::of(&prepared.train, &request.recipe.train);
    let steps = request.recipe.train.steps.unwrap_or_else(|| order.steps_of_epochs(request.recipe.train.epochs));
    of_run(request, &registry, &opened.files, &prepared, steps, ops.as_ref()).map(|planned| planned.plan)
}

/// A plan, and what a step of the run makes.
pub(crate) struct Planned {
    pub plan: Plan,
    pub step_bytes: StepBytes,
}
/// Plans a run whose rows are known.
///
/// # Errors
/// What training would refuse before its first step.
pub(crate) fn of_run(
    request: &TrainRequest,
    registry: &Registry,
    files: &ModelFiles,
    prepared: &Prepared,
    steps: usize,
    ops: &Device,
) -> Result<Planned, EngineError> {
    let recipe = &request.recipe;
    let start = request.adapter.as_deref().map(read_peft).transpose()?;
    let objective = registry.objective(&recipe.loss.name, &recipe.loss.parameters)?;
    let optimizer = plugins::optimizer(recipe, registry)?;
    let kl = objective.alignment_needs().is_some_and(|a| a.kl_completions);
    let mut order = Order::of(&prepared.train, &recipe.train);
    let info = ops.info();
    let available = memory::available(&info, memory::host_memory());

    let heads = Heads::of(&objective);
    let footprint =
        Footprint::new(ops, &files.config, files.tensors.as_ref(), recipe, start.as_ref(), heads, optimizer.as_ref())?;
    let mut others = Vec::new();
    let frozen = recipe.method == Method::Full || start.is_some();
    if frozen && objective.loss().needs().reference_logp {
        others.push(part("reference", 4 * footprint.trainable));
    }
    // What lies in the host's memory counts where the device's is the same.
    if info.shares_host_memory {
        others.push(part("process", PROCESS_BYTES));
        others.push(part("dataset", 5 * (prepared.report.tokens + prepared.report.validation_tokens) as u64));
    }
    let other: u64 = others.iter().map(|part| part.bytes).sum();
    let batch = recipe.train.batch_size;
    let peak_at = |order: &mut Order, micro: usize| {
        let (tokens, trained) = largest_micro_batch(order, &prepared.train, micro, steps, kl, heads);
        (footprint.fixed() + footprint.step(ops, tokens, trained) + other, tokens, trained)
    };
    let fits = |bytes: u64| available.is_none_or(|available| bytes <= available);

    // The largest micro-batch that fits, by bisection over 1..=batch.
    let (mut low, mut high) = (0, batch);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(peak_at(&mut order, middle).0) { low = middle } else { high = middle - 1 }
    }
    let largest = low;
    let micro = match NonZeroUsize::new(recipe.train.micro_batch_size) {
        None => {
            let lengths = prepared.train.lengths();
            let mean = lengths.iter().sum::<usize>() / lengths.len().max(1);
            let rows_packed = recipe.train.packing && prepared.train.kind == DataKind::Supervised;
            let unit = if rows_packed { recipe.train.sequence_length } else { mean.max(1) };
            (COMFORTABLE_TOKENS / unit).clamp(1, batch).min(largest.max(1))
        }
        Some(asked) => asked.get(),
    };
    let (peak, tokens, trained) = peak_at(&mut order, micro);
    let mut parts = footprint.fixed_parts();
    parts.extend(footprint.step_parts(ops, tokens, trained));
    parts.extend(others);
    let step_bytes = StepBytes::new(micro, |micro| {
        let (tokens, trained) = largest_micro_batch(&mut order, &prepared.train, micro, steps, kl, heads);
        footprint.reserved(ops, tokens, trained)
    });

    let tokens_per_step = {
        let rows = order.rows_per_epoch().max(1);
        prepared.train.lengths().iter().sum::<usize>() as f64 / rows as f64 * batch.min(rows) as f64
    };
    let rate = matrix_rate(ops)?;
    let longest = dataset::longest_document(prepared);
    let mean_context = dataset::mean_document(&prepared.train);
    let loss = objective.loss();
    let fused =
        loss.separable(&Default::default()).is_some() || (recipe.method != Method::Full && loss.needs().only_logp());
    let work = footprint.work_per_token(mean_context, fused);
    let seconds_per_step = work * tokens_per_step / (rate * STEP_EFFICIENCY);
    let remedy = (!fits(peak)).then(|| remedy(recipe, longest, info.on_host));
    let plan = Plan {
        device: info.name,
        on_host: info.on_host,
        parts,
        peak_bytes: peak,
        available_bytes: available.unwrap_or(0),
        offloaded_bytes: footprint.offloaded(tokens),
        fits: fits(peak),
        micro_batch_size: micro,
        largest_micro_batch: largest,
        steps,
        tokens_per_step,
        trainable_parameters: footprint.trainable,
        parameters: footprint.parameters,
        seconds_per_step,
        total_seconds: seconds_per_step * steps as f64,
        remedy,
    };
    Ok(Planned { plan, step_bytes })
}

#[cfg(test)]
mod tests;
