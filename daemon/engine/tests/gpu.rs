//! Runs on the first GPU of the machine: moving between devices, memory that
//! runs short, and what goes wrong.

#![cfg(feature = "gpu")]

mod common;

use std::sync::Arc;

use common::runs::*;
use common::*;
use finetuned_data::Row;
use finetuned_engine::model::adapter;
use finetuned_engine::plugins;
use finetuned_engine::train::step::StepBytes;
use finetuned_engine::train::step::{StepOptions, StepResult, Trainer};
use finetuned_engine::{EngineError, Event, Outcome, TrainRequest, train};
use finetuned_formats::read_peft;
use finetuned_shaders::Device;
use finetuned_shaders::gpu::{self, Gpu};
use serde_json::Map;

/// Trains on these devices in turn, each up to its step.
fn in_turn(request: &mut TrainRequest, turns: &[(&str, Option<usize>)]) -> Vec<f64> {
    for (device, stop_after) in turns {
        request.device = device.to_string();
        let mut watcher = Watcher { stop_after: *stop_after, ..Watcher::default() };
        let outcome = train(request, &mut watcher).expect("a run");
        match stop_after {
            Some(step) => assert_eq!(outcome, Outcome::Stopped { step: *step }),
            None => assert!(matches!(outcome, Outcome::Finished(_))),
        }
    }
    let lines = finetuned_engine::run::metrics::read(&request.out).expect("metrics");
    lines.iter().filter_map(|line| line["loss"].as_f64()).collect()
}

#[test]
fn a_run_moves_between_the_cpu_and_a_gpu() {
    let Some(device) = on_gpu() else { return };
    let folder = tempfile::tempdir().expect("folder");
    let all = [
        vec!["method=lora", "lora.dropout=0.1"],
        vec!["method=qlora", "optimizer.name=adamw-8bit"],
        vec!["method=full", "optimizer.name=muon", "train.learning_rate=1e-3"],
    ];
    for (number, settings) in all.iter().enumerate() {
        let mut still = request(folder.path(), &format!("still{number}"), settings);
        let want = in_turn(&mut still, &[("cpu", None)]);
        let mut moved = request(folder.path(), &format!("moved{number}"), settings);
        let got = in_turn(&mut moved, &[("cpu", Some(4)), (&device.name, Some(8)), ("cpu", None)]);
        assert_eq!((want.len(), got.len()), (12, 12), "{settings:?}: every step once");
        for (step, (got, want)) in got.iter().zip(&want).enumerate() {
            let allowed = 0.01 * want.abs();
            assert!((got - want).abs() <= allowed, "{settings:?}, step {}: {got} against {want}", step + 1);
        }
    }
}

/// A trainer of the golden llama's adapter with this device, and its data.
fn trainer(gpu: &Arc<Gpu>, micro_batch_size: usize) -> (Trainer, finetuned_data::Examples, Vec<Row>) {
    let ops = Device::from(gpu.clone());
    let path = "llama/batches.safetensors";
    let examples = examples(&ids(path, "input_ids"), &ids(path, "labels"));
    let registry = plugins::registry(&[]).expect("registry");
    let objective = registry.objective("cross-entropy", &Map::new()).expect("loss");
    let optimizer = registry.optimizer("sgd", &Map::new()).expect("optimizer");
    let mut model = decoder(&ops, "llama", false, None);
    adapter::attach_peft(&ops, &mut model, &read_peft(&golden("llama/lora")).expect("adapter")).expect("attached");
    let options = StepOptions {
        micro_batch_size,
        gradient_checkpointing: false,
        offload_activations: false,
        max_grad_norm: 0.0,
        seed: 1,
    };
    let trainer = Trainer::new(ops, model, objective, optimizer, options, false).expect("trainer");
    (trainer, examples, (0..8).map(|i| Row { examples: vec![i] }).collect())
}

fn one_step(gpu: &Arc<Gpu>, micro_batch_size: usize, limit: Option<u64>) -> (Result<StepResult, EngineError>, u64) {
    let (mut trainer, examples, rows) = trainer(gpu, micro_batch_size);
    trainer.ops.reset_peak();
    gpu.limit_memory(limit.unwrap_or(0));
    let result = trainer.step(&examples, &rows, 1, 1e-3, &mut |_, _| true);
    gpu.limit_memory(0);
    (result.map(|result| result.expect("a whole step")), trainer.ops.allocated_bytes().1)
}

#[test]
fn memory_that_runs_short_halves_the_micro_batch_and_keeps_the_batch() {
    let Some(_) = on_gpu() else { return };
    let gpu = Arc::new(gpu::open(&gpu::list()[0]).expect("the GPU opens"));
    let (whole, eight) = one_step(&gpu, 8, None);
    let (_, four) = one_step(&gpu, 4, None);
    let (_, two) = one_step(&gpu, 2, None);
    assert!(eight > four && four > two, "{eight} {four} {two}");
    let whole = whole.expect("a step");
    let (short, _) = one_step(&gpu, 8, Some((four + two) / 2));
    let short = short.expect("a step in less memory");
    assert_eq!((whole.micro_batch_size, short.micro_batch_size), (8, 2));
    assert!((whole.loss - short.loss).abs() < 1e-5 * whole.loss, "{} {}", whole.loss, short.loss);
    assert!((whole.grad_norm - short.grad_norm).abs() < 1e-4 * whole.grad_norm);
    // One unit that does not fit is an error that says so.
    let (none, _) = one_step(&gpu, 8, Some(two / 4));
    let none = none.expect_err("too little").to_string();
    assert!(none.contains("no memory for") && none.contains("train.gradient_checkpointing = true"), "{none}");
}

#[test]
fn memory_that_is_not_there_before_the_first_step_halves_the_micro_batch() {
    let Some(_) = on_gpu() else { return };
    let (whole, _) = one_step(&Arc::new(gpu::open(&gpu::list()[0]).expect("the GPU opens")), 8, None);
    let gpu = Arc::new(gpu::open(&gpu::list()[0]).expect("the GPU opens"));
    let (mut trainer, examples, rows) = trainer(&gpu, 8);
    gpu.limit_memory(gpu.memory().pages + (2 << 20));
    let micro = trainer.reserve(StepBytes::new(8, |micro| (micro as u64) << 19)).expect("memory for fewer");
    assert_eq!((micro, gpu.memory().reserved), (4, 2 << 20), "nothing was computed yet");
    gpu.limit_memory(0);
    let step = trainer.step(&examples, &rows, 1, 1e-3, &mut |_, _| true).expect("a step").expect("a whole step");
    let whole = whole.expect("a step");
    assert_eq!((whole.micro_batch_size, step.micro_batch_size), (8, 4));
    assert!((whole.loss - step.loss).abs() < 1e-5 * whole.loss, "{} {}", whole.loss, step.loss);
}

#[test]
fn a_run_that_diverges_on_a_gpu_says_what_is_not_finite_and_keeps_its_checkpoint() {
    let Some(device) = on_gpu() else { return };
    let folder = tempfile::tempdir().expect("folder");
    let settings = [
        "method=full",
        "optimizer.name=sgd",
        "train.learning_rate=1e30",
        "train.max_grad_norm=0",
        "checkpoint.every_steps=1",
        "train.warmup_ratio=0",
    ];
    let mut request = request(folder.path(), "out", &settings);
    request.device = device.name;
    let error = train(&request, &mut Watcher::default()).expect_err("it diverges");
    assert!(matches!(error, EngineError::NotFinite { .. }), "{error}");
    assert!(request.out.join("checkpoints").read_dir().expect("checkpoints").next().is_some());
}

#[test]
fn a_gpu_that_is_not_there_is_an_error_of_the_device_and_nothing_is_lost() {
    let folder = tempfile::tempdir().expect("folder");
    let mut request = request(folder.path(), "out", &[]);
    in_turn(&mut request, &[("cpu", Some(4))]);
    request.device = "gpu:99".into();
    let error = train(&request, &mut Watcher::default()).expect_err("no such GPU");
    assert!(error.is_of_the_device() && error.to_string().contains("gpu:99"), "{error}");
    request.device = "cpu".into();
    let mut watcher = Watcher::default();
    assert!(matches!(train(&request, &mut watcher), Ok(Outcome::Finished(_))));
    assert!(watcher.events.iter().any(|event| matches!(event, Event::Started { resumed_from: 4, .. })));
}
