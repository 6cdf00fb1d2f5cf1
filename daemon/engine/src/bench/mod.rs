//! How fast a training step is, as a ratio to what the machine can do in
//! matrix products in the same run.

mod compare;
mod report;
mod shapes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use finetuned_data::{DataKind, Example, Examples, Row};
use finetuned_formats::{ModelConfig, TensorSource};
use finetuned_shaders::Device;
use finetuned_shaders::profile::{Profile, Timing};
use finetuned_shaders::random::Key;
use serde::{Deserialize, Serialize};

use self::compare::LossBench;
pub use self::report::{BenchReport, LossReport, OperationTime};
pub use self::shapes::{SHAPES, shape_config};
use crate::base::BaseModel;
use crate::devices::{self, rate::matrix_peak};
use crate::error::EngineError;
use crate::model::{adapter, build};
use crate::plan::Counter;
use crate::plugins;
use crate::random_weights::RandomWeights;
use crate::recipe::{Method, Recipe};
use crate::train::micro_batch::{MicroBatch, documents};
use crate::train::step::{StepBytes, StepOptions, Trainer};
use crate::vocabulary::PluginLibrary;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchOptions {
    /// A model folder or GGUF file; else `shape` with random weights.
    pub model: Option<PathBuf>,
    /// A name of [`SHAPES`].
    pub shape: Option<String>,
    pub method: Method,
    /// Tokens of each sequence, all trained.
    pub tokens: usize,
    /// Sequences of a step, in one micro-batch.
    pub sequences: usize,
    pub lora_rank: usize,
    pub gradient_checkpointing: bool,
    pub device: String,
    pub threads: Option<usize>,
    /// Steps that are timed, after one that is not.
    pub steps: usize,
    /// Also time every operation of a step by itself.
    #[serde(default)]
    pub profile: bool,
    /// A loss to compare with the built-in cross-entropy, step by step in turn.
    pub loss: Option<String>,
    /// Libraries that the loss may come from.
    #[serde(default)]
    pub plugins: Vec<PluginLibrary>,
}

impl Default for BenchOptions {
    fn default() -> Self {
        BenchOptions {
            model: None,
            shape: Some("smollm2-135m".into()),
            method: Method::Lora,
            tokens: 256,
            sequences: 4,
            lora_rank: 16,
            gradient_checkpointing: false,
            device: "auto".into(),
            threads: None,
            steps: 5,
            profile: false,
            loss: None,
            plugins: Vec::new(),
        }
    }
}

/// Times training steps.
///
/// # Errors
/// An unknown shape (the known ones are named), a model that cannot be loaded.
pub fn bench(options: &BenchOptions) -> Result<BenchReport, EngineError> {
    let (name, config, source): (String, ModelConfig, Box<dyn TensorSource>) = match (&options.model, &options.shape) {
        (Some(path), _) => {
            let opened = BaseModel::open(path)?;
            (path.display().to_string(), opened.files.config, opened.files.tensors)
        }
        (None, Some(shape)) => {
            let config = shape_config(shape)?;
            let source = RandomWeights::new(&config);
            (format!("{shape} (random weights)"), config, Box::new(source))
        }
        (None, None) => return Err(EngineError::NothingToMeasure),
    };
    let mut recipe = Recipe { method: options.method, ..Recipe::default() };
    recipe.lora.rank = options.lora_rank;
    recipe.train.gradient_checkpointing = options.gradient_checkpointing;
    let mut ops = devices::open(&options.device, options.threads)?;
    let profile = options.profile.then(Arc::<Profile>::default);
    if let Some(profile) = &profile {
        ops = ops.timed_by(profile.clone());
    }
    let load = build::LoadOptions {
        trainable: options.method == Method::Full,
        nf4: (options.method == Method::Qlora).then_some(true),
        context: options.tokens,
    };
    let started = Instant::now();
    let mut model = build::load(&ops, &config, source.as_ref(), &load)?;
    ops.synchronize()?;
    let load_seconds = started.elapsed().as_secs_f64();
    if options.method != Method::Full {
        adapter::attach_fresh(&ops, &mut model, &recipe.lora, 1)?;
    }
    let registry = plugins::registry(&options.plugins)?;
    let optimizer = plugins::optimizer(&recipe, &registry)?;
    let objective = registry.objective("cross-entropy", &serde_json::Map::new())?;
    let step_options = StepOptions {
        micro_batch_size: options.sequences,
        gradient_checkpointing: options.gradient_checkpointing,
        offload_activations: false,
        max_grad_norm: 1.0,
        seed: 1,
    };
    let random = Key::new(7, 0, 0);
    let token = |place: usize| random.word(place as u64) % config.vocab_size as u32;
    let example = |i: usize| {
        let tokens = (0..options.tokens).map(|t| token(i * options.tokens + t)).collect();
        Example::plain(tokens, (0..options.tokens).map(|t| t > 0).collect(), i + 1)
    };
    let list = (0..options.sequences).map(example).collect();
    let examples = Examples { kind: DataKind::Supervised, sequence_length: options.tokens, list };
    let rows: Vec<Row> = (0..options.sequences).map(|i| Row { examples: vec![i] }).collect();

    let counter = Counter {
        device: &ops,
        config: &config,
        source: source.as_ref(),
        recipe: &recipe,
        start: None,
        objective: &objective,
        optimizer: plugins::optimizer(&recipe, &registry)?,
        context: options.tokens,
    };
    let mut count = counter.count()?;
    let scratch = count.optimizer.scratch;
    let mut counted = |sequences: usize| {
        let rows: Vec<&Row> = rows.iter().take(sequences).collect();
        let all: Vec<_> = (0..rows.len()).flat_map(|at| documents(&examples, &rows, at, false)).collect();
        count.micro_batch(&MicroBatch::new(&all, &objective.loss().needs()))
    };
    let step_count = counted(options.sequences)?;
    let step_bytes = StepBytes::try_new(options.sequences, |sequences| Ok(counted(sequences)?.bytes().max(scratch)))?;
    let mut trainer = Trainer::new(ops.clone(), model, objective, optimizer, step_options, true)?;
    trainer.reserve(step_bytes)?;

    let mut peak = best_peak(&ops)?;
    let mut times = Vec::new();
    let mut loss = 0.0;
    for step in 1..=options.steps + 1 {
        let started = Instant::now();
        if let Some(result) = trainer.step(&examples, &rows, step, 1e-5, &mut |_, _| true)? {
            loss = result.loss;
        }
        if step > 1 {
            times.push(started.elapsed().as_secs_f64());
        }
    }
    peak = peak.max(best_peak(&ops)?);
    let peak_bytes = ops.allocated_bytes().1;
    let copy_bytes_per_second = copy_rate(&ops)?;
    let operations = match &profile {
        Some(profile) => {
            // The timed steps may have been lazy; this one is not.
            profile.take();
            trainer.step(&examples, &rows, options.steps + 2, 1e-5, &mut |_, _| true)?;
            let timings = profile.take();
            let total: f64 = timings.iter().map(|timing| timing.seconds).sum();
            let line = |timing: &Timing| OperationTime {
                operation: timing.operation.into(),
                calls: timing.calls,
                seconds: timing.seconds,
                share: timing.seconds / total,
            };
            timings.iter().map(line).collect()
        }
        None => Vec::new(),
    };
    let compared = match &options.loss {
        Some(name) => {
            let bench = LossBench { registry: &registry, recipe: &recipe, step_options, options };
            Some(bench.compare(name, trainer, &examples, &rows)?)
        }
        None => None,
    };
    let seconds = median(times);
    let tokens = options.tokens * options.sequences;
    let work = step_count.flops / step_count.tokens.max(1) as f64;
    let rate = work * tokens as f64 / seconds;
    let info = ops.info();
    Ok(BenchReport {
        device: if info.on_host { info.name } else { format!("{}, products in {}", info.name, info.products()) },
        threads: info.parallelism,
        model: name,
        method: options.method.name().into(),
        tokens_per_step: tokens,
        seconds_per_step: seconds,
        tokens_per_second: tokens as f64 / seconds,
        flops_per_token: work,
        gflops: rate / 1e9,
        peak_gflops: peak / 1e9,
        ratio: rate / peak,
        peak_bytes,
        load_seconds,
        loss,
        copy_bytes_per_second,
        profile: operations,
        compared,
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Bytes a second of a copy of 64 MiB, read and written, at its best.
fn copy_rate(ops: &Device) -> Result<f64, EngineError> {
    let x = ops.zeros(&[16 << 20])?;
    ops.synchronize()?;
    let mut best: f64 = 0.0;
    for _ in 0..4 {
        let started = Instant::now();
        let y = ops.copy(&x)?;
        ops.synchronize()?;
        best = best.max((x.bytes() + y.bytes()) as f64 / started.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// The best of several measurements of a large product.
fn best_peak(ops: &Device) -> Result<f64, EngineError> {
    let mut best: f64 = 0.0;
    for _ in 0..5 {
        best = best.max(matrix_peak(ops)?);
    }
    Ok(best)
}
