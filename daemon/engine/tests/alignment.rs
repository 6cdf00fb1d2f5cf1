//! Preference methods against TRL's own trainers: loss and gradient norm of ten
//! steps from the golden adapter.

mod common;

use std::fmt::Write;

use common::{base, golden};
use finetuned_engine::recipe::{self, Recipe};
use finetuned_engine::{Event, Observer, TrainRequest, train};
use serde_json::Value;

const LOSS: f64 = 1e-3;
const NORM: f64 = 1e-2;

struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: &Event) {}
}

/// Loss and gradient norm of each step of a golden file's run.
fn follow(file: &str, settings: &[&str]) {
    let text = std::fs::read_to_string(golden(&format!("trl/{file}.json"))).expect("golden file");
    let golden_run: Value = serde_json::from_str(&text).expect("json");
    let folder = tempfile::tempdir().expect("folder");
    let data = folder.path().join("rows.jsonl");
    let mut lines = String::new();
    let rows = golden_run["rows"].as_array().expect("rows");
    for row in rows {
        writeln!(lines, "{row}").expect("line");
    }
    std::fs::write(&data, lines).expect("data");
    let per_step = if file == "kto" { 4 } else { 2 };
    let mut table = toml::Table::new();
    let fixed = [
        format!("train.batch_size={per_step}"),
        "train.steps=10".into(),
        "train.shuffle=false".into(),
        "train.validation_fraction=0".into(),
        "train.learning_rate=5e-3".into(),
        "train.schedule=constant".into(),
        "train.warmup_steps=0".into(),
        "optimizer.beta2=0.95".into(),
        "checkpoint.every_steps=0".into(),
    ];
    for setting in fixed.iter().map(String::as_str).chain(settings.iter().copied()) {
        recipe::set(&mut table, setting).expect("setting");
    }
    let request = TrainRequest {
        data,
        validation: None,
        adapter: Some(golden("llama/lora")),
        out: folder.path().join("out"),
        recipe: Recipe { base: base("llama"), ..Recipe::from_table(&table).expect("recipe") },
        device: "cpu".into(),
        fresh: false,
        threads: Some(2),
        plugins: Vec::new(),
        accept_plugin_change: false,
    };
    train(&request, &mut Silent).expect("a finished run");
    let metrics = finetuned_engine::run::metrics::read(&request.out).expect("metrics");
    let steps = golden_run["steps"].as_array().expect("steps");
    assert_eq!(steps.len(), 10);
    let mut worst: (f64, f64) = (0.0, 0.0);
    for (line, step) in metrics.iter().zip(steps) {
        let number = |v: &Value, key: &str| v[key].as_f64().unwrap_or_else(|| panic!("{file}: {key} in {v}"));
        let off = |key: &str, unit: f64| {
            let (a, b) = (number(line, key), number(step, key));
            (a - b).abs() / b.abs().max(unit)
        };
        worst = (worst.0.max(off("loss", 1.0)), worst.1.max(off("grad_norm", 1e-3)));
    }
    assert!(worst.0 < LOSS && worst.1 < NORM, "{file}: loss off by {}, norm by {}", worst.0, worst.1);
}

#[test]
fn dpo() {
    follow("dpo-sigmoid", &["loss.name=dpo", "loss.beta=0.1", "loss.variant=sigmoid"]);
    follow("dpo-hinge", &["loss.name=dpo", "loss.beta=0.1", "loss.variant=hinge"]);
    follow("dpo-ipo", &["loss.name=dpo", "loss.beta=0.1", "loss.variant=ipo"]);
    follow("dpo-robust", &["loss.name=dpo", "loss.beta=0.1", "loss.variant=robust", "loss.label_smoothing=0.1"]);
}

#[test]
fn kto() {
    follow("kto", &["loss.name=kto", "loss.beta=0.1"]);
}

#[test]
fn without_a_reference() {
    follow("orpo", &["loss.name=orpo", "loss.beta=0.1"]);
    follow("cpo", &["loss.name=cpo", "loss.beta=0.1"]);
    follow("simpo", &["loss.name=simpo", "loss.beta=2.0", "loss.gamma=0.5"]);
}
