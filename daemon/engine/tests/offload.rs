//! Activation offload: the same bits, less of the device's memory, and a plan
//! that says how much.

mod common;

use std::collections::BTreeMap;

use common::runs::*;
use common::*;
use finetuned_data::Row;
use finetuned_engine::model::adapter;
use finetuned_engine::model::build::{LoadOptions, load};
use finetuned_engine::plan;
use finetuned_engine::plugins;
use finetuned_engine::recipe::{Recipe, set};
use finetuned_engine::train::step::{StepOptions, StepResult, Trainer};
use finetuned_engine::{Event, Outcome, train};
use finetuned_formats::{FormatError, ModelFiles, TensorInfo, TensorSource};
use finetuned_shaders::Device;
use serde_json::Map;

/// Layers of the model whose memory is measured.
const LAYERS: usize = 8;

/// The golden llama's two layers, again and again.
struct Taller(ModelFiles);

impl Taller {
    fn below(name: &str) -> String {
        let mut parts: Vec<String> = name.split('.').map(str::to_string).collect();
        if let Some(at) = parts.iter().position(|part| part == "layers") {
            let layer: usize = parts[at + 1].parse().expect("a layer's number");
            parts[at + 1] = (layer % 2).to_string();
        }
        parts.join(".")
    }
}

impl TensorSource for Taller {
    fn names(&self) -> Vec<String> {
        self.0.tensors.names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.0.tensors.info(&Taller::below(name))
    }

    fn read_f32_into(&self, name: &str, out: &mut [f32]) -> Result<(), FormatError> {
        self.0.tensors.read_f32_into(&Taller::below(name), out)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        self.0.tensors.read_f32(&Taller::below(name))
    }
}

/// One step of eight rows at once: its result, every gradient's bits, the most
/// bytes on the device beyond what lay there before.
fn step(ops: &Device, checkpointing: bool, offload: bool) -> (StepResult, BTreeMap<usize, Vec<u32>>, u64) {
    let path = "llama/batches.safetensors";
    let examples = examples(&ids(path, "input_ids"), &ids(path, "labels"));
    let registry = plugins::registry(&[]).expect("registry");
    let objective = registry.objective("cross-entropy", &Map::new()).expect("loss");
    let optimizer = registry.optimizer("sgd", &Map::new()).expect("optimizer");
    let files = files("llama");
    let mut config = files.config.clone();
    config.layers = LAYERS;
    config.layer_is_sliding.resize(LAYERS, false);
    config.layer_uses_rope.resize(LAYERS, true);
    let options = LoadOptions { trainable: false, nf4: None, context: 64 };
    let mut model = load(ops, &config, &Taller(files), &options).expect("weights");
    let mut recipe = toml::Table::new();
    ["lora.rank=4", "lora.dropout=0.1"].iter().for_each(|setting| set(&mut recipe, setting).expect("setting"));
    let recipe = Recipe::from_table(&recipe).expect("recipe");
    adapter::attach_fresh(ops, &mut model, &recipe.lora, 7).expect("attached");
    let options = StepOptions {
        micro_batch_size: 8,
        gradient_checkpointing: checkpointing,
        offload_activations: offload,
        max_grad_norm: 0.0,
        seed: 1,
    };
    let mut trainer = Trainer::new(ops.clone(), model, objective, optimizer, options, true).expect("trainer");
    let rows: Vec<Row> = (0..8).map(|i| Row { examples: vec![i] }).collect();
    ops.synchronize().expect("the device");
    ops.reset_peak();
    let (before, _) = ops.allocated_bytes();
    let result = trainer.step(&examples, &rows, 1, 1e-3, &mut |_, _| true).expect("a step").expect("a whole step");
    let (_, peak) = ops.allocated_bytes();
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    let gradients = trainer
        .gradients()
        .iter()
        .enumerate()
        .map(|(number, (_, gradient))| (number, bits(ops.read(gradient).expect("a gradient"))))
        .collect();
    (result, gradients, peak - before)
}

#[test]
fn a_step_with_its_activations_on_the_host_has_the_same_bits() {
    for device in [Some(on_cpu()), on_gpu()].into_iter().flatten() {
        let (whole, whole_bits, _) = step(&device.ops, false, false);
        let (kept, kept_bits, kept_peak) = step(&device.ops, true, false);
        let (moved, moved_bits, moved_peak) = step(&device.ops, true, true);
        assert!(whole_bits == kept_bits && kept_bits == moved_bits, "{}: the gradients differ", device.name);
        assert_eq!((whole.loss.to_bits(), kept.loss.to_bits()), (moved.loss.to_bits(), moved.loss.to_bits()));
        if device.name == "cpu" {
            continue;
        }
        // f32 of every token's 64 numbers: with checkpointing the inputs of all layers
        // lie on the device when the last layer's backward pass begins, else that
        // layer's alone.
        let input = (4 * 64 * moved.tokens) as u64;
        let saved = kept_peak - moved_peak;
        assert!(
            saved >= (LAYERS as u64 - 1) * input && saved <= (LAYERS as u64 + 1) * input,
            "{kept_peak} with all inputs on the device, {moved_peak} with them on the host: {} inputs less",
            saved as f64 / input as f64
        );
    }
}

#[test]
fn a_run_with_its_activations_on_the_host_writes_the_same_adapter() {
    let folder = tempfile::tempdir().expect("folder");
    let plain = ["lora.dropout=0.1", "train.gradient_checkpointing=true"];
    let moved = ["lora.dropout=0.1", "train.gradient_checkpointing=true", "train.offload_activations=true"];
    for device in ["cpu".to_string()].into_iter().chain(on_gpu().map(|device| device.name)) {
        let trained = |out: &str, settings: &[&str]| {
            let mut request = request(folder.path(), &format!("{out}-{}", device.replace(':', "")), settings);
            request.device = device.clone();
            let (outcome, events) = run(&request);
            assert!(matches!(outcome, Outcome::Finished(_)));
            let adapter = std::fs::read(request.out.join("adapter_model.safetensors")).expect("adapter");
            let notes = events.into_iter().filter_map(|event| match event {
                Event::Note { message } => Some(message),
                _ => None,
            });
            (adapter, notes.collect::<Vec<_>>().join("\n"))
        };
        let (plain, _) = trained("plain", &plain);
        let (moved, notes) = trained("moved", &moved);
        assert!(plain == moved, "{device}: the adapters differ");
        let said = if device == "cpu" { "changes nothing on the CPU" } else { "wait in host memory" };
        assert!(notes.contains(said), "{device}: {notes}");
    }
}

#[test]
fn a_run_goes_on_with_less_memory_than_it_began_with() {
    let folder = tempfile::tempdir().expect("folder");
    let whole = request(folder.path(), "whole", &["lora.dropout=0.1"]);
    run(&whole);
    let cut = request(folder.path(), "cut", &["lora.dropout=0.1"]);
    let mut watcher = Watcher { stop_after: Some(5), ..Watcher::default() };
    assert_eq!(train(&cut, &mut watcher).expect("stopped"), Outcome::Stopped { step: 5 });
    let settings = ["lora.dropout=0.1", "train.gradient_checkpointing=true", "train.offload_activations=true"];
    run(&request(folder.path(), "cut", &settings));
    let adapter =
        |out: &str| std::fs::read(folder.path().join(out).join("adapter_model.safetensors")).expect("adapter");
    assert!(adapter("whole") == adapter("cut"), "what saves memory changes no bit");
}

#[test]
fn the_plan_counts_what_leaves_the_device() {
    let Some(device) = on_gpu() else { return };
    let folder = tempfile::tempdir().expect("folder");
    let planned = |settings: &[&str]| {
        let mut request = request(folder.path(), "out", settings);
        request.device = device.name.clone();
        let plan = plan(&request).expect("a plan");
        let activations = plan.parts.iter().find(|part| part.name == "activations").expect("a part").bytes;
        (activations, plan.offloaded_bytes, plan.peak_bytes)
    };
    let (kept, nothing, kept_peak) = planned(&["train.gradient_checkpointing=true"]);
    let (left, host, left_peak) = planned(&["train.gradient_checkpointing=true", "train.offload_activations=true"]);
    assert_eq!(nothing, 0);
    // Between the passes both layers' inputs are away; in the backward pass they are back
    // one at a time.
    assert!(host > 0);
    assert_eq!(kept - left, host, "{kept} {left} {host}");
    let fall = kept_peak - left_peak;
    assert!((host / 2..=host).contains(&fall), "{kept_peak} {left_peak} {host}");
}
