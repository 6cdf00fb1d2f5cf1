//! The decoder against PyTorch: logits, log-probabilities, gradients, ten-step
//! curves and greedy continuations, for every family.

mod common;

use common::*;
use finetuned_data::{Examples, Row};
use finetuned_engine::model::adapter;
use finetuned_engine::model::batch::TokenBatch;
use finetuned_engine::model::context::Pass;
use finetuned_engine::model::decoder::{Decoder, Keep};
use finetuned_engine::model::parameters::Gradients;
use finetuned_engine::plugins;
use finetuned_engine::train::step::{StepOptions, Trainer};
use finetuned_formats::{FAMILIES, read_peft};
use finetuned_shaders::{Device, StatisticSet, TokenCoefficients};
use serde_json::{Map, Value, json};

fn batch(ids: &[Vec<i64>]) -> TokenBatch {
    let documents: Vec<Vec<u32>> = ids.iter().map(|row| row.iter().map(|t| *t as u32).collect()).collect();
    TokenBatch::from_documents(documents.iter().map(Vec::as_slice))
}

/// A model with the golden adapter of this kind, or the bare model.
fn model(ops: &Device, architecture: &str, kind: &str) -> Decoder {
    let nf4 = (kind == "qlora").then_some(true);
    let mut model = decoder(ops, architecture, kind == "full", nf4);
    if kind != "full" && kind != "base" {
        let folder = if kind == "qlora" { "lora" } else { kind };
        let peft = read_peft(&golden(&format!("{architecture}/{folder}"))).expect("adapter");
        adapter::attach_peft(ops, &mut model, &peft).expect("attached");
    }
    model
}

fn has(architecture: &str, kind: &str) -> bool {
    kind == "full" || golden(&format!("{architecture}/{kind}/forward.safetensors")).is_file()
}

fn folder(architecture: &str, kind: &str) -> String {
    if kind == "full" { architecture.to_string() } else { format!("{architecture}/{kind}") }
}

const KINDS: [&str; 5] = ["full", "lora", "qlora", "rslora", "dora"];

fn logits_and_log_probabilities(device: &TestDevice, architecture: &str) {
    let ops = device.ops.clone();
    let ids = ids(&format!("{architecture}/forward.safetensors"), "input_ids");
    let batch = batch(&ids);
    let rows: Vec<u32> = (0..batch.tokens.len() as u32).collect();
    for kind in KINDS.into_iter().filter(|kind| has(architecture, kind)) {
        let model = model(&ops, architecture, kind);
        let logits = model.logits(&ops, &batch, &rows, &Pass::evaluation(true)).expect("logits");
        let expected = &tensors(&format!("{}/forward.safetensors", folder(architecture, kind)))["logits"].1;
        let difference = largest_difference(&ops.read(&logits).expect("read"), expected);
        assert!(difference < device.forward, "{architecture} {kind}: logits differ by {difference}");
    }
    let model = model(&ops, architecture, "base");
    let forward = model.forward(&ops, &batch, &Pass::evaluation(false), Keep::Nothing).expect("forward");
    let t = ids[0].len();
    let rows: Vec<u32> = (0..batch.tokens.len() as u32).filter(|r| !(*r as usize + 1).is_multiple_of(t)).collect();
    let targets: Vec<u32> = rows.iter().map(|r| batch.tokens[*r as usize + 1]).collect();
    let head = model.head_input(&ops, &forward, &rows).expect("head");
    let logp =
        ops.token_logp(&head.h, &model.lm_head(), &targets, StatisticSet::default()).expect("log-probabilities").logp;
    let expected = &tensors(&format!("{architecture}/forward.safetensors"))["token_logp"].1;
    let difference = largest_difference(&logp, expected);
    assert!(difference < device.forward, "{architecture}: log-probabilities differ by {difference}");
}

fn every_gradient(device: &TestDevice, architecture: &str, checkpointing: &[bool]) {
    let ops = device.ops.clone();
    let path = format!("{architecture}/forward.safetensors");
    let (ids, labels) = (ids(&path, "input_ids"), ids_of(&path, "labels"));
    let examples = examples(&ids, &labels);
    for kind in KINDS.into_iter().filter(|kind| has(architecture, kind)) {
        for &checkpointing in checkpointing {
            let model = model(&ops, architecture, kind);
            let gradients = gradients(&ops, &model, &ids, &examples, checkpointing);
            let expected = tensors(&format!("{}/grads.safetensors", folder(architecture, kind)));
            let mut compared = 0;
            for (id, gradient) in gradients.iter() {
                let parameter = model.parameters.get(id);
                let Some((shape, expected)) = expected.get(&golden_name(&parameter.name, &expected)) else {
                    panic!("{architecture} {kind}: no golden gradient of {}", parameter.name)
                };
                let mut values = ops.read(gradient).expect("read");
                if parameter.transposed_on_disk {
                    values =
                        finetuned_engine::model::build::transposed(&values, parameter.shape[0], parameter.shape[1]);
                }
                assert_eq!(shape.iter().product::<usize>(), values.len());
                let error = relative(&values, expected);
                assert!(error < device.gradient, "{architecture} {kind} {}: gradient off by {error}", parameter.name);
                compared += 1;
            }
            assert_eq!(compared, expected.len(), "{architecture} {kind}: every golden gradient has its own");
        }
    }
}

fn ids_of(path: &str, name: &str) -> Vec<Vec<i64>> {
    ids(path, name)
}

/// PyTorch names a wrapped model's parameters as PEFT's files do; DoRA's
/// magnitude is the exception.
fn golden_name(name: &str, expected: &Tensors) -> String {
    let weight = format!("{name}.weight");
    if expected.contains_key(&weight) { weight } else { name.to_string() }
}

/// Gradients of the mean loss over all trained tokens.
fn gradients(ops: &Device, model: &Decoder, ids: &[Vec<i64>], examples: &Examples, checkpointing: bool) -> Gradients {
    let batch = batch(ids);
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    let mut offset = 0;
    for document in examples.list.iter().flat_map(|example| &example.documents) {
        for i in 1..document.len() {
            if document.is_trained(i) {
                rows.push((offset + i - 1) as u32);
                targets.push(document.tokens[i]);
            }
        }
        offset += document.len();
    }
    let pass = Pass { training: true, adapters: true, seed: 1, step: 1, micro_batch: 0 };
    let mut gradients = Gradients::zeros(ops, &model.parameters).expect("memory");
    let forward = model
        .forward(ops, &batch, &pass, if checkpointing { Keep::Inputs } else { Keep::Everything })
        .expect("forward");
    let head = model.head_input(ops, &forward, &rows).expect("head");
    let coefficients =
        TokenCoefficients { logp: vec![-1.0 / rows.len() as f32; rows.len()], ..TokenCoefficients::default() };
    let dh = ops
        .token_logp_backward(&head.h, &model.lm_head(), &targets, &coefficients, gradients.get_mut(model.head))
        .expect("head backward");
    model.backward(ops, forward, head, &dh, &mut gradients).expect("backward");
    gradients
}

fn curves(architecture: &str) -> Value {
    let text = std::fs::read_to_string(golden(&format!("{architecture}/curves.json"))).expect("curves");
    serde_json::from_str(&text).expect("json")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
}

fn run_curve(device: &TestDevice, architecture: &str, kind: &str, micro_batch_size: usize) -> (Vec<f64>, Vec<f64>) {
    let ops = device.ops.clone();
    let curve = &curves(architecture)[kind];
    let path = format!("{architecture}/batches.safetensors");
    let examples = examples(&ids(&path, "input_ids"), &ids(&path, "labels"));
    let registry = plugins::registry(&[]).expect("registry");
    let objective = registry.objective("cross-entropy", &Map::new()).expect("loss");
    let parameters = json!({
        "beta1": curve["betas"][0], "beta2": curve["betas"][1], "epsilon": curve["eps"],
        "weight_decay": curve["weight_decay"],
    });
    let optimizer = registry.optimizer("adamw", parameters.as_object().expect("map")).expect("optimizer");
    let options = StepOptions {
        micro_batch_size,
        gradient_checkpointing: false,
        offload_activations: false,
        max_grad_norm: curve["clip"].as_f64().expect("clip"),
        seed: 1,
    };
    let model = model(&ops, architecture, kind);
    let mut trainer = Trainer::new(ops, model, objective, optimizer, options, false).expect("trainer");
    let mut losses = Vec::new();
    let mut norms = Vec::new();
    for step in 1..=10 {
        let rows: Vec<Row> = (0..2).map(|i| Row { examples: vec![2 * (step - 1) + i] }).collect();
        let rate = curve["lr"].as_f64().expect("rate");
        let result = trainer.step(&examples, &rows, step, rate, &mut |_, _| true).expect("step").expect("whole");
        losses.push(result.loss);
        norms.push(result.grad_norm);
    }
    (losses, norms)
}

fn assert_close(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= tolerance * e.abs().max(1.0), "{what}, step {}: {g} against {e}", i + 1);
    }
}

fn ten_steps_follow_pytorch(device: &TestDevice, architecture: &str) {
    let curves = curves(architecture);
    for kind in KINDS.into_iter().filter(|kind| curves.get(kind).is_some()) {
        let (losses, norms) = run_curve(device, architecture, kind, 2);
        let what = format!("{} {architecture} {kind}", device.name);
        assert_close(&format!("{what} loss"), &losses, &numbers(&curves[kind]["loss"]), device.curve);
        assert_close(&format!("{what} norm"), &norms, &numbers(&curves[kind]["grad_norm"]), device.curve);
    }
}

/// The tests of each golden model, in a module of its name: `cargo test gemma2` runs
/// that family's.
macro_rules! golden_models {
    ($($model:ident,)*) => {
        const MODELS: &[&str] = &[$(stringify!($model)),*];

        $(mod $model {
            use super::*;

            const MODEL: &str = stringify!($model);

            #[test]
            fn logits_and_log_probabilities_on_the_cpu() {
                logits_and_log_probabilities(&on_cpu(), MODEL);
            }

            #[test]
            fn logits_and_log_probabilities_on_a_gpu() {
                on_gpu().iter().for_each(|device| logits_and_log_probabilities(device, MODEL));
            }

            #[test]
            fn every_gradient_on_the_cpu() {
                every_gradient(&on_cpu(), MODEL, &[false, true]);
            }

            #[test]
            fn every_gradient_on_a_gpu() {
                on_gpu().iter().for_each(|device| every_gradient(device, MODEL, &[true]));
            }

            #[test]
            fn ten_steps_follow_pytorch_on_the_cpu() {
                ten_steps_follow_pytorch(&on_cpu(), MODEL);
            }

            #[test]
            fn ten_steps_follow_pytorch_on_a_gpu() {
                on_gpu().iter().for_each(|device| ten_steps_follow_pytorch(device, MODEL));
            }

            #[test]
            fn greedy_continuations_on_the_cpu() {
                greedy_continuations(&on_cpu(), MODEL);
            }

            #[test]
            fn greedy_continuations_on_a_gpu() {
                on_gpu().iter().for_each(|device| greedy_continuations(device, MODEL));
            }
        })*
    };
}

golden_models! {
    llama,
    llama3,
    mistral,
    qwen2,
    qwen3,
    gemma2,
    gemma3,
    phi3,
    smollm3,
    gpt2,
    olmo2,
}

#[test]
fn every_family_has_golden_numbers() {
    let tested: Vec<&str> = MODELS.iter().map(|model| files(model).config.family.model_type).collect();
    for family in FAMILIES {
        assert!(tested.contains(&family.model_type), "no golden model is a {}", family.model_type);
    }
}

#[test]
fn accumulation_changes_nothing_but_rounding() {
    // The two rows have different numbers of trained tokens: a mean of means
    // would show (peers: transformers#34191).
    let (whole, whole_norms) = run_curve(&on_cpu(), "llama", "lora", 2);
    let (halves, half_norms) = run_curve(&on_cpu(), "llama", "lora", 1);
    for (a, b) in whole.iter().chain(&whole_norms).zip(halves.iter().chain(&half_norms)) {
        assert!((a - b).abs() < 1e-5 * a.abs(), "{a} against {b}");
    }
}

fn greedy_continuations(device: &TestDevice, architecture: &str) {
    let ops = device.ops.clone();
    let greedy = &curves(architecture)["greedy"];
    let list = |key: &str| numbers(&greedy[key]).iter().map(|n| *n as u32).collect::<Vec<_>>();
    let (prompt, expected) = (list("prompt"), list("completion"));
    let model = model(&ops, architecture, "base");
    let pass = Pass::evaluation(true);
    let mut caches = model.caches(&ops, prompt.len() + expected.len()).expect("caches");
    let mut logits = ops.read(&model.decode(&ops, &prompt, &mut caches, 0, &pass).expect("prompt")).expect("read");
    let mut got = Vec::new();
    while got.len() < expected.len() {
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).expect("logits").0 as u32;
        got.push(best);
        let length = prompt.len() + got.len() - 1;
        let next = model.decode(&ops, &[best], &mut caches, length, &pass).expect("decode");
        logits = ops.read(&next).expect("read");
    }
    assert_eq!(got, expected, "{architecture}");
}
