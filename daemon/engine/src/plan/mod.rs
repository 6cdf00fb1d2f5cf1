//! What a run will take: bytes by part and time, before it starts.
//!
//! Nothing is calculated beside the code that computes: the run's real model goes
//! through its largest micro-batches on a device that has shapes and no values. Time is
//! the counted operations over a rate that is measured for a moment on the device.

mod count;
mod fit;
mod remedy;

use std::num::NonZeroUsize;
use std::path::Path;

use finetuned_data::{DataKind, Prepared};
use finetuned_formats::{ModelFiles, read_peft};
use finetuned_plugin_api::registry::Registry;
use finetuned_shaders::Device;

pub(crate) use self::count::Counter;
use self::count::MicroBatchCount;
use self::fit::Rows;
use self::remedy::remedy;
use crate::base::BaseModel;
use crate::dataset;
use crate::devices::{self, memory, rate::matrix_rate};
use crate::error::EngineError;
use crate::plugins;
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

/// Micro-batches whose operations are counted for the time of a step.
const LOOKED_AT: usize = 4;

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
    of_run(request, &registry, &opened.files, &prepared, steps, &ops).map(|planned| planned.plan)
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
    let longest = dataset::longest_document(prepared);
    let counter = Counter {
        device: ops,
        config: &files.config,
        source: files.tensors.as_ref(),
        recipe,
        start: start.as_ref(),
        objective: &objective,
        optimizer: plugins::optimizer(recipe, registry)?,
        context: longest,
    };
    let mut count = counter.count()?;
    let mut rows = Rows {
        order: Order::of(&prepared.train, &recipe.train),
        examples: &prepared.train,
        needs: objective.loss().needs(),
        kl: objective.alignment_needs().is_some_and(|a| a.kl_completions),
        steps,
    };
    let info = ops.info();
    let available = memory::available(&info, memory::host_memory());
    let mut others = Vec::new();
    // Tensors of a device that shares the host's memory share it with the rest of the
    // process.
    if info.shares_host_memory {
        others.push(part("process", PROCESS_BYTES));
        others.push(part("dataset", 5 * (prepared.report.tokens + prepared.report.validation_tokens) as u64));
    }
    let lasting = count.lasting() + others.iter().map(|part| part.bytes).sum::<u64>();
    let batch = recipe.train.batch_size;
    // A step allocates this much, or its optimizer does once the activations are gone.
    let scratch = count.optimizer.scratch;
    let mut largest_of = |micro: usize| -> Result<MicroBatchCount, EngineError> {
        let counts = rows.largest(micro).iter().map(|micro| count.micro_batch(micro)).collect::<Result<Vec<_>, _>>()?;
        counts.into_iter().max_by_key(MicroBatchCount::bytes).ok_or(EngineError::EmptySequence)
    };
    let fits = |bytes: u64| available.is_none_or(|available| bytes <= available);

    // The largest micro-batch that fits, by bisection over 1..=batch.
    let (mut low, mut high) = (0, batch);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(lasting + largest_of(middle)?.bytes()) { low = middle } else { high = middle - 1 }
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
    let counted = largest_of(micro)?;
    let peak = lasting + counted.bytes();
    let step_bytes = StepBytes::try_new(micro, |micro| Ok(largest_of(micro)?.bytes().max(scratch)))?;
    let mut parts = count.parts.clone();
    parts.extend(counted.parts());
    parts.extend(others);

    let tokens_per_step = {
        let rows = rows.order.rows_per_epoch().max(1);
        prepared.train.lengths().iter().sum::<usize>() as f64 / rows as f64 * batch.min(rows) as f64
    };
    let rate = matrix_rate(ops)?;
    let looked_at = rows.first(micro, LOOKED_AT).iter().map(|m| count.micro_batch(m)).collect::<Result<Vec<_>, _>>()?;
    let (flops, tokens) = looked_at.iter().fold((0.0, 0), |sum, next| (sum.0 + next.flops, sum.1 + next.tokens));
    let seconds_per_step = flops / tokens.max(1) as f64 * tokens_per_step / (rate * STEP_EFFICIENCY);
    let remedy = (!fits(peak)).then(|| remedy(recipe, longest, info.on_host));
    let plan = Plan {
        device: info.name,
        on_host: info.on_host,
        parts,
        peak_bytes: peak,
        available_bytes: available.unwrap_or(0),
        offloaded_bytes: counted.offloaded,
        fits: fits(peak),
        micro_batch_size: micro,
        largest_micro_batch: largest,
        steps,
        tokens_per_step,
        trainable_parameters: count.parameters.1,
        parameters: count.parameters.0,
        seconds_per_step,
        total_seconds: seconds_per_step * steps as f64,
        remedy,
    };
    Ok(Planned { plan, step_bytes })
}

#[cfg(test)]
mod tests;
