//! Plans beside what steps then take.

use std::path::Path;
#[cfg(feature = "gpu")]
use std::sync::Arc;

use finetuned_data::{DataKind, Example, Examples, Row};
use finetuned_formats::{ModelConfig, ModelFiles, TensorSource};
use finetuned_plugin_api::loss::Needs;
use finetuned_shaders::Device;
#[cfg(feature = "gpu")]
use finetuned_shaders::gpu::{self, Gpu};

use super::count::{Count, Counter};
use crate::model::{adapter, build};
use crate::plugins;
use crate::random_weights::RandomWeights;
use crate::recipe::{Method, Recipe};
use crate::train::micro_batch::{MicroBatch, documents};
use crate::train::step::{StepBytes, StepOptions, Trainer};

/// A llama of three layers.
fn config() -> ModelConfig {
    let text = r#"{"model_type":"llama","vocab_size":1024,"hidden_size":128,"num_hidden_layers":3,
        "num_attention_heads":4,"num_key_value_heads":2,"intermediate_size":320,"max_position_embeddings":256,
        "rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":true}"#;
    ModelConfig::from_json(serde_json::from_str(text).expect("json"), Path::new("a test")).expect("a configuration")
}

const TOKENS: usize = 48;

fn recipe(method: Method, dropout: f64, gradient_checkpointing: bool) -> Recipe {
    let mut recipe = Recipe { method, ..Recipe::default() };
    recipe.lora.rank = 8;
    recipe.lora.dropout = dropout;
    recipe.train.gradient_checkpointing = gradient_checkpointing;
    recipe
}

fn data(sequences: usize) -> (Examples, Vec<Row>) {
    let example = |i: usize| {
        let tokens = (0..TOKENS).map(|t| (i * 31 + t * 7) as u32 % 300).collect();
        Example::plain(tokens, (0..TOKENS).map(|t| t > 0).collect(), i + 1)
    };
    let rows = (0..sequences).map(|i| Row { examples: vec![i] }).collect();
    let list = (0..sequences).map(example).collect();
    (Examples { kind: DataKind::Supervised, sequence_length: TOKENS, list }, rows)
}

/// The peak of a step over one micro-batch of these sequences, counted.
fn step_bytes(count: &mut Count, sequences: usize) -> u64 {
    let (examples, rows) = data(sequences);
    let rows: Vec<&Row> = rows.iter().collect();
    let all: Vec<_> = (0..sequences).flat_map(|at| documents(&examples, &rows, at, false)).collect();
    count.micro_batch(&MicroBatch::new(&all, &Needs::default())).expect("a count").bytes()
}

/// The counting model of a run with cross-entropy.
fn counted(ops: &Device, config: &ModelConfig, source: &dyn TensorSource, recipe: &Recipe) -> Count {
    let registry = plugins::registry(&[]).expect("plugins");
    let objective = registry.objective("cross-entropy", &serde_json::Map::new()).expect("a loss");
    let counter = Counter {
        device: ops,
        config,
        source,
        recipe,
        start: None,
        objective: &objective,
        optimizer: plugins::optimizer(recipe, &registry).expect("an optimizer"),
        context: TOKENS,
    };
    counter.count().expect("a count")
}

fn trainer(ops: &Device, recipe: &Recipe, sequences: usize) -> (Trainer, Count) {
    let config = config();
    let source = RandomWeights::new(&config);
    trainer_of(ops, &config, &source, recipe, sequences)
}

fn trainer_of(
    ops: &Device,
    config: &ModelConfig,
    source: &dyn TensorSource,
    recipe: &Recipe,
    sequences: usize,
) -> (Trainer, Count) {
    let options = build::LoadOptions {
        trainable: recipe.method == Method::Full,
        nf4: (recipe.method == Method::Qlora).then_some(recipe.qlora.double_quant),
        context: TOKENS,
    };
    let mut model = build::load(ops, config, source, &options).expect("a model");
    if recipe.method != Method::Full {
        adapter::attach_fresh(ops, &mut model, &recipe.lora, 1).expect("an adapter");
    }
    let registry = plugins::registry(&[]).expect("plugins");
    let optimizer = plugins::optimizer(recipe, &registry).expect("an optimizer");
    let objective = registry.objective("cross-entropy", &serde_json::Map::new()).expect("a loss");
    let count = counted(ops, config, source, recipe);
    let options = StepOptions {
        micro_batch_size: sequences,
        gradient_checkpointing: recipe.train.gradient_checkpointing,
        offload_activations: recipe.train.offload_activations,
        max_grad_norm: 1.0,
        seed: 1,
    };
    let trainer = Trainer::new(ops.clone(), model, objective, optimizer, options, true).expect("a trainer");
    (trainer, count)
}

#[cfg(feature = "gpu")]
fn gpu() -> Option<Arc<Gpu>> {
    let Some(entry) = gpu::list().into_iter().next() else {
        assert!(std::env::var_os("FINETUNED_REQUIRE_GPU").is_none(), "no GPU was found");
        println!("skipped: this machine has no GPU and no software driver (mesa-vulkan-drivers has one)");
        return None;
    };
    Some(Arc::new(gpu::open(&entry).expect("the GPU opens")))
}

/// Planned bytes and the ledger's peak over two steps. `lasting` counts what the
/// device's ledger holds of what lasts.
fn planned_and_taken(ops: &Device, recipe: &Recipe, sequences: usize, lasting: impl Fn(&Count) -> u64) -> (u64, u64) {
    taken(ops, trainer(ops, recipe, sequences), sequences, lasting)
}

fn taken(
    ops: &Device,
    (mut trainer, mut count): (Trainer, Count),
    sequences: usize,
    lasting: impl Fn(&Count) -> u64,
) -> (u64, u64) {
    let step = step_bytes(&mut count, sequences);
    trainer.reserve(StepBytes::new(sequences, |_| step)).expect("memory");
    ops.reset_peak();
    let (examples, rows) = data(sequences);
    for step in 1..=2 {
        trainer.step(&examples, &rows, step, 1e-4, &mut |_, _| true).expect("a step");
    }
    (lasting(&count) + step, ops.allocated_bytes().1)
}

fn compare(ops: &Device, allowed: std::ops::Range<f64>, lasting: impl Fn(&Count) -> u64) {
    let device = ops.info().name;
    for (method, dropout) in [(Method::Full, 0.0), (Method::Lora, 0.0), (Method::Lora, 0.1), (Method::Qlora, 0.1)] {
        for checkpointing in [false, true] {
            let recipe = recipe(method, dropout, checkpointing);
            let (planned, taken) = planned_and_taken(ops, &recipe, 6, &lasting);
            let ratio = planned as f64 / taken as f64;
            let words = format!("{device}, {method:?}, dropout {dropout}, checkpointing {checkpointing}");
            println!("{words}: planned {planned}, taken {taken}, {ratio:.3}");
            assert!(allowed.contains(&ratio), "{words}: planned {planned}, taken {taken}");
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn a_plan_is_a_close_upper_bound_on_a_gpu() {
    let Some(gpu) = gpu() else { return };
    let ops = Device::from(gpu);
    compare(&ops, 1.0..1.25, Count::lasting);
}

#[test]
fn a_plan_is_close_on_the_cpu() {
    let ops: Device = Device::cpu(Some(2)).expect("threads");
    // The scratch of its threads is in the plan's part for the process.
    compare(&ops, 0.98..1.05, of_the_ledger);
}

/// Layers of other shapes: one product for gate and up, norms of queries and keys,
/// norms behind the branches, no gate.
fn compare_every_kind_of_layer(ops: &Device, allowed: std::ops::Range<f64>, lasting: impl Fn(&Count) -> u64) {
    for architecture in ["phi3", "qwen3", "gemma2", "gpt2"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(architecture);
        let files = ModelFiles::open(&path).expect("a model");
        let mut dora = recipe(Method::Lora, 0.1, false);
        dora.lora.variant = crate::recipe::Variant::Dora;
        for recipe in [recipe(Method::Full, 0.0, true), dora] {
            let made = trainer_of(ops, &files.config, files.tensors.as_ref(), &recipe, 4);
            let (planned, taken) = taken(ops, made, 4, &lasting);
            let ratio = planned as f64 / taken as f64;
            println!("{architecture} {:?}: planned {planned}, taken {taken}, {ratio:.3}", recipe.method);
            assert!(allowed.contains(&ratio), "{architecture} {:?}: {planned} for {taken}", recipe.method);
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn a_plan_is_an_upper_bound_for_every_kind_of_layer() {
    let Some(gpu) = gpu() else { return };
    let ops = Device::from(gpu);
    compare_every_kind_of_layer(&ops, 1.0..1.25, Count::lasting);
}

#[test]
fn a_plan_is_close_for_every_kind_of_layer_on_the_cpu() {
    let ops: Device = Device::cpu(Some(2)).expect("threads");
    compare_every_kind_of_layer(&ops, 0.98..1.05, of_the_ledger);
}

/// What the CPU's ledger holds of what lasts: an optimizer's states and temporaries are
/// outside of it.
fn of_the_ledger(count: &Count) -> u64 {
    count.lasting() - count.optimizer.states - count.optimizer.scratch
}

/// A model that this machine could not hold is counted all the same.
#[test]
fn a_llama_of_seventy_billion_is_counted() {
    let text = r#"{"model_type":"llama","vocab_size":128256,"hidden_size":8192,"num_hidden_layers":80,
        "num_attention_heads":64,"num_key_value_heads":8,"intermediate_size":28672,"max_position_embeddings":8192,
        "rms_norm_eps":1e-5,"rope_theta":500000.0,"tie_word_embeddings":false}"#;
    let config = ModelConfig::from_json(serde_json::from_str(text).expect("json"), Path::new("a test"));
    let config = config.expect("a configuration");
    let source = RandomWeights::new(&config);
    let ops: Device = Device::cpu(Some(2)).expect("threads");
    let recipe = recipe(Method::Qlora, 0.0, true);
    let start = std::time::Instant::now();
    let mut count = counted(&ops, &config, &source, &recipe);
    let step = step_bytes(&mut count, 4);
    println!("{} bytes, and {step} in a step; counted in {:?}", count.lasting(), start.elapsed());
    // 70.6 billion numbers, of which 68.5 billion in NF4.
    assert_eq!(count.parameters.0 / 100_000_000, 706, "{}", count.parameters.0);
    let weights = count.parts.iter().find(|part| part.name == "weights").map_or(0, |part| part.bytes);
    let exactly =
        68_451_041_280.0 * (0.5 + 1.0 / 64.0 + 4.0 / 64.0 / 256.0) + 4.0 * 2_101_346_304.0 + 4.0 * 161.0 * 8192.0;
    let ratio = weights as f64 / exactly;
    assert!((1.0..1.125).contains(&ratio), "weights of {weights} bytes, {ratio:.4}");
}

#[cfg(feature = "gpu")]
#[test]
fn steps_ask_the_driver_for_nothing_once_the_first_is_done() {
    for (method, checkpointing) in [(Method::Full, false), (Method::Lora, true), (Method::Qlora, false)] {
        let Some(gpu) = gpu() else { return };
        let ops = Device::from(gpu.clone());
        let recipe = recipe(method, 0.1, checkpointing);
        let (mut trainer, mut count) = trainer(&ops, &recipe, 4);
        let bytes = step_bytes(&mut count, 4).max(count.optimizer.scratch);
        trainer.reserve(StepBytes::new(4, |_| bytes)).expect("memory");
        let reserved = gpu.memory();
        ops.reset_peak();
        let (examples, rows) = data(4);
        let mut after = Vec::new();
        for step in 1..=5 {
            trainer.step(&examples, &rows, step, 1e-4, &mut |_, _| true).expect("a step");
            after.push(gpu.memory());
        }
        let last = after[4];
        println!("{method:?}: reserved {reserved:?}, after five steps {last:?}");
        assert!(after[1..].iter().all(|then| (then.requests, then.pages) == (last.requests, last.pages)), "{after:?}");
        let ratio = last.pages as f64 / last.peak as f64;
        println!("{method:?}: pages are {ratio:.3} of the peak");
        assert!(ratio < 1.25, "{method:?}: pages of {} for {}", last.pages, last.peak);
    }
}

#[cfg(feature = "gpu")]
#[test]
fn a_run_has_the_same_bits_wherever_its_tensors_lie() {
    let Some(gpu) = gpu() else { return };
    let recipe = recipe(Method::Lora, 0.1, false);
    let bits = |reserved: bool, aside: usize| {
        let gpu = Arc::new(gpu::open(&gpu::list()[0]).expect("the GPU opens"));
        let ops = Device::from(gpu.clone());
        let (mut trainer, mut count) = trainer(&ops, &recipe, 3);
        if reserved {
            let bytes = step_bytes(&mut count, 3).max(count.optimizer.scratch);
            trainer.reserve(StepBytes::new(3, |_| bytes)).expect("memory");
        }
        // Moves whatever comes after it.
        let aside = ops.zeros(&[aside]).expect("memory");
        let (examples, rows) = data(3);
        let mut bits = Vec::new();
        for step in 1..=3 {
            let result = trainer.step(&examples, &rows, step, 1e-3, &mut |_, _| true).expect("a step");
            bits.push(result.expect("a whole step").loss.to_bits());
        }
        for (_, gradient) in trainer.gradients().iter() {
            bits.extend(ops.read(gradient).expect("a gradient").iter().map(|x| u64::from(x.to_bits())));
        }
        drop(aside);
        bits
    };
    drop(gpu);
    let want = bits(false, 1);
    assert!(want == bits(true, 1), "with memory reserved");
    assert!(want == bits(true, 100_003), "and something before it");
}
