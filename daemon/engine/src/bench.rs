//! How fast a training step is, as a ratio to what the machine can do in
//! matrix products in the same run.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use finetuned_data::{Example, Examples, Row};
use finetuned_formats::{FormatError, ModelConfig, RandomTensor, StoredType, TensorInfo, TensorSource};
use finetuned_plugin_api::registry::Registry;
use finetuned_shaders::Device;
use finetuned_shaders::profile::{Profiled, Timing};
use finetuned_shaders::random::Key;
use serde::{Deserialize, Serialize};

use crate::api::PluginLibrary;
use crate::error::EngineError;
use crate::model::shape::ModelShape;
use crate::model::streams;
use crate::model::{adapter, build};
use crate::plan::{Footprint, StepBytes, matrix_rate};
use crate::recipe::{Method, Recipe};
use crate::train::heads::Heads;
use crate::train::prepare;
use crate::train::step::{StepOptions, Trainer};
use crate::train::used::used;

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

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    pub device: String,
    pub threads: usize,
    pub model: String,
    pub method: String,
    pub tokens_per_step: usize,
    /// Median over the timed steps.
    pub seconds_per_step: f64,
    pub tokens_per_second: f64,
    /// Operations that the step's mathematics needs, not what was executed.
    pub flops_per_token: f64,
    pub gflops: f64,
    /// Best large matrix product before and after the steps.
    pub peak_gflops: f64,
    pub ratio: f64,
    /// Tensors alone.
    pub peak_bytes: u64,
    /// From opening the weights, or making random ones, to all of them on the
    /// device.
    #[serde(default)]
    pub load_seconds: f64,
    pub loss: f64,
    /// Bytes a second that a copy reads and writes together.
    #[serde(default)]
    pub copy_bytes_per_second: f64,
    /// One step with every operation waited for, where asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<OperationTime>,
    /// Where another loss was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared: Option<LossReport>,
}

/// What one operation took in a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperationTime {
    pub operation: String,
    pub calls: usize,
    pub seconds: f64,
    /// Of all operations' time.
    pub share: f64,
}

/// A loss against the built-in cross-entropy: steps of the two in turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossReport {
    pub name: String,
    /// `built in`, or the file that it comes from.
    pub origin: String,
    /// Medians over the steps in turn.
    pub seconds_per_step: f64,
    pub cross_entropy_seconds_per_step: f64,
    /// Median over the turns of one step's time to the other's.
    pub ratio: f64,
    pub turns: usize,
}

impl fmt::Display for BenchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} · {} · {} · {} threads", self.model, self.method, self.device, self.threads)?;
        writeln!(
            f,
            "  {:.1} tokens/s  ({} tokens in {:.2} s)",
            self.tokens_per_second, self.tokens_per_step, self.seconds_per_step
        )?;
        writeln!(
            f,
            "  {:.1} GFLOP/s of {:.1} in matrix products: {:.0}%",
            self.gflops,
            self.peak_gflops,
            100.0 * self.ratio
        )?;
        writeln!(f, "  {:.1} GB/s in copies", self.copy_bytes_per_second / 1e9)?;
        writeln!(f, "  {:.1} s to load the weights", self.load_seconds)?;
        write!(f, "  {:.2} GB of tensors at the peak", self.peak_bytes as f64 / 1e9)?;
        for line in &self.profile {
            write!(
                f,
                "\n  {:>5.1}%  {:<24} {:>9.3} s in {} calls",
                100.0 * line.share,
                line.operation,
                line.seconds,
                line.calls
            )?;
        }
        if let Some(loss) = &self.compared {
            write!(
                f,
                "\n  {} ({}): {:.3} s a step, cross-entropy {:.3} s, {} turns of both: {:+.1}%",
                loss.name,
                loss.origin,
                loss.seconds_per_step,
                loss.cross_entropy_seconds_per_step,
                loss.turns,
                100.0 * (loss.ratio - 1.0)
            )?;
        }
        Ok(())
    }
}

/// Shapes that can be measured without a checkpoint, as config.json says them.
pub const SHAPES: &[(&str, &str)] = &[
    (
        "smollm2-135m",
        r#"{"model_type":"llama","vocab_size":49152,"hidden_size":576,"num_hidden_layers":30,"num_attention_heads":9,
        "num_key_value_heads":3,"intermediate_size":1536,"max_position_embeddings":8192,"rms_norm_eps":1e-5,
        "rope_theta":100000.0,"tie_word_embeddings":true}"#,
    ),
    (
        "smollm2-360m",
        r#"{"model_type":"llama","vocab_size":49152,"hidden_size":960,"num_hidden_layers":32,"num_attention_heads":15,
        "num_key_value_heads":5,"intermediate_size":2560,"max_position_embeddings":8192,"rms_norm_eps":1e-5,
        "rope_theta":100000.0,"tie_word_embeddings":true}"#,
    ),
    (
        "qwen2.5-0.5b",
        r#"{"model_type":"qwen2","vocab_size":151936,"hidden_size":896,"num_hidden_layers":24,"num_attention_heads":14,
        "num_key_value_heads":2,"intermediate_size":4864,"max_position_embeddings":32768,"rms_norm_eps":1e-6,
        "rope_theta":1000000.0,"tie_word_embeddings":true}"#,
    ),
    (
        "llama-3.2-1b",
        r#"{"model_type":"llama","vocab_size":128256,"hidden_size":2048,"num_hidden_layers":16,
        "num_attention_heads":32,"num_key_value_heads":8,"head_dim":64,"intermediate_size":8192,
        "max_position_embeddings":131072,"rms_norm_eps":1e-5,"rope_theta":500000.0,"tie_word_embeddings":true}"#,
    ),
    (
        "llama-3.1-8b",
        r#"{"model_type":"llama","vocab_size":128256,"hidden_size":4096,"num_hidden_layers":32,
        "num_attention_heads":32,"num_key_value_heads":8,"intermediate_size":14336,"max_position_embeddings":131072,
        "rms_norm_eps":1e-5,"rope_theta":500000.0,"tie_word_embeddings":false}"#,
    ),
];

/// Times training steps.
///
/// # Errors
/// An unknown shape (the known ones are named), a model that cannot be loaded.
pub fn bench(options: &BenchOptions) -> Result<BenchReport, EngineError> {
    let (name, config, source): (String, ModelConfig, Box<dyn TensorSource>) = match (&options.model, &options.shape) {
        (Some(path), _) => {
            let opened = prepare::open_model(path)?;
            (path.display().to_string(), opened.files.config, opened.files.tensors)
        }
        (None, Some(shape)) => {
            let config = shape_config(shape)?;
            let source = RandomSource::new(&config);
            (format!("{shape} (random weights)"), config, Box::new(source))
        }
        (None, None) => return Err(EngineError::Other("give --model or --shape".into())),
    };
    let mut recipe = Recipe { method: options.method, ..Recipe::default() };
    recipe.lora.rank = options.lora_rank;
    recipe.train.gradient_checkpointing = options.gradient_checkpointing;
    let mut ops = prepare::device(&options.device, options.threads)?;
    let profiled = options.profile.then(|| Arc::new(Profiled::new(ops.clone())));
    if let Some(profiled) = &profiled {
        ops = profiled.clone();
    }
    let load = build::LoadOptions {
        trainable: options.method == Method::Full,
        nf4: (options.method == Method::Qlora).then_some(true),
        context: options.tokens,
    };
    let started = Instant::now();
    let mut model = build::load(ops.as_ref(), &config, source.as_ref(), &load)?;
    ops.synchronize()?;
    let load_seconds = started.elapsed().as_secs_f64();
    if options.method != Method::Full {
        adapter::attach_fresh(ops.as_ref(), &mut model, &recipe.lora, 1)?;
    }
    let registry = prepare::registry(&options.plugins)?;
    let optimizer = prepare::optimizer(&recipe, &registry)?;
    let footprint =
        Footprint::new(ops.as_ref(), &config, source.as_ref(), &recipe, None, Heads::LANGUAGE, optimizer.as_ref())?;
    let objective = registry.objective("cross-entropy", &serde_json::Map::new())?;
    let step_options = StepOptions {
        micro_batch_size: options.sequences,
        gradient_checkpointing: options.gradient_checkpointing,
        offload_activations: false,
        max_grad_norm: 1.0,
        seed: 1,
    };
    let mut trainer = Trainer::new(ops.clone(), model, objective, optimizer, step_options, true)?;

    trainer.reserve(StepBytes::new(options.sequences, |sequences| {
        footprint.reserved(ops.as_ref(), sequences * options.tokens, sequences * options.tokens.saturating_sub(1))
    }))?;

    let random = Key::new(7, 0, 0);
    let example = |i: usize| Example {
        tokens: (0..options.tokens)
            .map(|t| random.word((i * options.tokens + t) as u64) % config.vocab_size as u32)
            .collect(),
        trained: (0..options.tokens).map(|t| t > 0).collect(),
        line: i + 1,
    };
    let examples = Examples::Supervised((0..options.sequences).map(example).collect());
    let rows: Vec<Row> = (0..options.sequences).map(|i| Row { examples: vec![i] }).collect();

    let mut peak = matrix_peak(ops.as_ref())?;
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
    peak = peak.max(matrix_peak(ops.as_ref())?);
    let peak_bytes = ops.allocated_bytes().1;
    let copy_bytes_per_second = copy_rate(ops.as_ref())?;
    let profile = match &profiled {
        Some(profiled) => {
            // The timed steps may have been lazy; this one is not.
            profiled.take();
            trainer.step(&examples, &rows, options.steps + 2, 1e-5, &mut |_, _| true)?;
            let timings = profiled.take();
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
    let work = footprint.work_per_token(options.tokens as f64, true);
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
        profile,
        compared,
    })
}

struct LossBench<'a> {
    registry: &'a Registry,
    recipe: &'a Recipe,
    step_options: StepOptions,
    options: &'a BenchOptions,
}

impl LossBench<'_> {
    /// Steps with the cross-entropy and with the loss in turn, so that what else
    /// the machine does meets both.
    fn compare(
        &self,
        name: &str,
        trainer: Trainer,
        examples: &Examples,
        rows: &[Row],
    ) -> Result<LossReport, EngineError> {
        let mut recipe = self.recipe.clone();
        recipe.loss.name = name.to_string();
        let used = used(&recipe, self.registry, &self.options.plugins)?;
        let (mut ops, mut model) = trainer.into_model();
        let mut times: [Vec<f64>; 2] = Default::default();
        for _ in 0..self.options.steps.max(1) {
            for (name, times) in ["cross-entropy", name].into_iter().zip(&mut times) {
                let objective = self.registry.objective(name, &serde_json::Map::new())?;
                let optimizer = prepare::optimizer(self.recipe, self.registry)?;
                let mut trainer = Trainer::new(ops, model, objective, optimizer, self.step_options, true)?;
                trainer.check_data(examples)?;
                // The first step of a trainer makes what later ones reuse.
                trainer.step(examples, rows, 1, 1e-5, &mut |_, _| true)?;
                let started = Instant::now();
                trainer.step(examples, rows, 2, 1e-5, &mut |_, _| true)?;
                times.push(started.elapsed().as_secs_f64());
                (ops, model) = trainer.into_model();
            }
        }
        let [cross_entropy, loss] = times;
        let ratios = loss.iter().zip(&cross_entropy).map(|(loss, cross_entropy)| loss / cross_entropy).collect();
        Ok(LossReport {
            name: name.to_string(),
            origin: used.first().map_or_else(String::new, |plugin| plugin.origin.clone()),
            turns: loss.len(),
            ratio: median(ratios),
            seconds_per_step: median(loss),
            cross_entropy_seconds_per_step: median(cross_entropy),
        })
    }
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
fn matrix_peak(ops: &Device) -> Result<f64, EngineError> {
    let mut best: f64 = 0.0;
    for _ in 0..5 {
        best = best.max(matrix_rate(ops)?);
    }
    Ok(best)
}

/// The configuration of a named shape.
///
/// # Errors
/// An unknown name.
pub fn shape_config(name: &str) -> Result<ModelConfig, EngineError> {
    let known = || SHAPES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let (_, text) = SHAPES
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| EngineError::Other(format!("no shape is called `{name}`; there are {}", known())))?;
    let raw = serde_json::from_str(text).map_err(|e| EngineError::Other(e.to_string()))?;
    Ok(ModelConfig::from_json(raw, std::path::Path::new(name))?)
}

/// Random weights of a model's shape. Matrices are made by the device that they
/// are loaded on.
pub(crate) struct RandomSource {
    shapes: std::collections::BTreeMap<String, Vec<usize>>,
}

impl RandomSource {
    pub(crate) fn new(config: &ModelConfig) -> RandomSource {
        let shape = ModelShape::of(config);
        let c = config.hidden_size;
        let mut shapes = std::collections::BTreeMap::new();
        for linear in &shape.linears {
            shapes.insert(format!("{}.weight", linear.module), vec![linear.outputs, linear.inputs]);
            shapes.insert(format!("{}.bias", linear.module), vec![linear.outputs]);
        }
        for i in 0..config.layers {
            for name in ["input_layernorm", "post_attention_layernorm"] {
                shapes.insert(format!("model.layers.{i}.{name}.weight"), vec![c]);
            }
        }
        shapes.insert("model.norm.weight".into(), vec![c]);
        shapes.insert("model.embed_tokens.weight".into(), vec![config.vocab_size, c]);
        shapes.insert("lm_head.weight".into(), vec![config.vocab_size, c]);
        RandomSource { shapes }
    }
}

impl TensorSource for RandomSource {
    fn names(&self) -> Vec<String> {
        self.shapes.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        Some(TensorInfo { shape: self.shapes.get(name)?.clone(), stored: StoredType::BF16 })
    }

    fn read_f32_into(&self, name: &str, out: &mut [f32]) -> Result<(), FormatError> {
        out.copy_from_slice(&self.read_f32(name)?);
        Ok(())
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        let shape = self
            .shapes
            .get(name)
            .ok_or_else(|| FormatError::NoSuchTensor { path: "random weights".into(), name: name.to_string() })?;
        let elements = shape.iter().product();
        Ok(match self.random(name) {
            Some(random) => streams::made_up(&random).symmetric_vec(elements, random.scale),
            // Norms and biases.
            None => vec![1.0; elements],
        })
    }

    fn random(&self, name: &str) -> Option<RandomTensor> {
        let matrix = self.shapes.get(name)?.len() == 2;
        let place = self.shapes.keys().position(|known| known == name)? as u32;
        // About the size of a trained model's weights.
        matrix.then_some(RandomTensor { seed: 3, place, scale: 0.035 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use finetuned_shaders::WeightKind;

    #[test]
    fn what_a_device_makes_is_what_the_source_would_read() {
        let config = shape_config("smollm2-135m").expect("a shape");
        let source = RandomSource::new(&config);
        let name = "model.layers.3.self_attn.k_proj.weight";
        let shape = source.info(name).expect("a tensor").shape;
        let random = source.random(name).expect("a matrix is random");
        let key = Key::new(random.seed, 0, random.place);
        let ops = finetuned_shaders::cpu::Cpu::new(Some(2)).expect("a device");
        let weight = ops.random_weight(&shape, random.scale, key, WeightKind::F32).expect("a weight");
        assert!(ops.read_weight(&weight).expect("its values") == source.read_f32(name).expect("its values"));
        // No two tensors are alike; norms are ones; other names are refused.
        let other = source.random("model.layers.4.self_attn.k_proj.weight").expect("a matrix is random");
        assert!(other.place != random.place);
        assert!(source.random("model.norm.weight").is_none());
        assert!(source.read_f32("model.norm.weight").expect("a norm").iter().all(|x| *x == 1.0));
        assert!(source.read_f32("model.layers.99.mlp.up_proj.weight").is_err());
    }
}
