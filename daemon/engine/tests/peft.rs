//! An adapter of ours under Hugging Face PEFT: the same logits, and a reward
//! model's the same values, also as a full model. Runs where a Python with peft is there (`FINETUNED_PYTHON`, else `python3`), and says so
//! where it is not.

mod common;

use std::process::Command;

use common::*;
use finetuned_engine::model::batch::TokenBatch;
use finetuned_engine::model::build::{LoadOptions, load};
use finetuned_engine::model::context::Pass;
use finetuned_engine::model::{adapter, value};
use finetuned_engine::recipe::{self, Recipe};
use finetuned_engine::{Event, Observer, TrainRequest, train};
use finetuned_formats::{ElementType, ModelFiles, TensorSpec, Values, read_peft, write_safetensors_to};

struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: &Event) {}
}

/// A Python that has PEFT, or None and a word about it.
fn python() -> Option<String> {
    let python = std::env::var("FINETUNED_PYTHON").unwrap_or_else(|_| "python3".into());
    let there = Command::new(&python).args(["-c", "import peft, transformers, torch"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        println!("{python} has no peft: not compared. pip install torch transformers peft safetensors");
        return None;
    }
    Some(python)
}

/// Trains a golden model on these rows in a folder; the result is in `out`.
fn trained(architecture: &str, folder: &std::path::Path, rows: &str, settings: &[&str]) -> TrainRequest {
    let data = folder.join("rows.jsonl");
    std::fs::write(&data, rows).expect("data");
    let mut table = toml::Table::new();
    for setting in settings {
        recipe::set(&mut table, setting).expect("setting");
    }
    let request = TrainRequest {
        data,
        validation: None,
        adapter: None,
        out: folder.join("out"),
        recipe: Recipe { base: base(architecture), ..Recipe::from_table(&table).expect("recipe") },
        device: "cpu".into(),
        fresh: false,
        threads: Some(2),
        plugins: Vec::new(),
        accept_plugin_change: false,
    };
    train(&request, &mut Silent).expect("a finished run");
    request
}

#[test]
fn transformers_computes_the_same_rewards() {
    let Some(python) = python() else { return };
    let ops = cpu();
    for (architecture, method) in [("llama", "lora"), ("gemma3", "lora"), ("gpt2", "full"), ("llama", "full")] {
        let folder = tempfile::tempdir().expect("folder");
        let row = |i: usize| {
            let ids = |from: usize| (0..5).map(|t| from + (i * 7 + t * 5) % 40).collect::<Vec<usize>>();
            format!(
                "{{\"prompt_ids\": {:?}, \"chosen_ids\": {:?}, \"rejected_ids\": {:?}}}\n",
                ids(10),
                ids(100),
                ids(200)
            )
        };
        let rows: String = (0..16).map(row).collect();
        let settings = [
            "loss.name=reward-model",
            "train.steps=6",
            "train.learning_rate=1e-2",
            "train.validation_fraction=0",
            &format!("method={method}"),
        ];
        let request = trained(architecture, folder.path(), &rows, &settings);

        let full = method == "full";
        let trained = if full { request.out.clone() } else { golden(architecture) };
        let files = ModelFiles::open(&trained).expect("model");
        let options = LoadOptions { trainable: false, nf4: None, context: 64 };
        let mut model = load(&ops, &files.config, files.tensors.as_ref(), &options).expect("weights");
        if full {
            let head = value::stored(&files.config, files.tensors.as_ref()).expect("read").expect("a head");
            model.attach_value_head(&ops, value::WEIGHT, &head).expect("attached");
        } else {
            let peft = read_peft(&request.out).expect("adapter");
            adapter::attach_peft(&ops, &mut model, &peft).expect("attached");
        }
        // Documents that end in no padding token, before which transformers would read.
        let documents: Vec<Vec<u32>> = [100, 200, 40].map(|from| (0..9).map(|t| from + t * 3).collect()).to_vec();
        let batch = TokenBatch::from_documents(documents.iter().map(Vec::as_slice));
        let values = model.values(&ops, &batch, &Pass::evaluation(true)).expect("values").expect("a head");
        let numbers = folder.path().join("values.safetensors");
        let ids: Vec<i64> = documents.concat().iter().map(|t| i64::from(*t)).collect();
        let specs = [
            TensorSpec::new("input_ids", &[3, 9], ElementType::I64),
            TensorSpec::new("values", &[3], ElementType::F32),
        ];
        let mut file = std::fs::File::create(&numbers).expect("file");
        write_safetensors_to(&mut file, &numbers, &specs, |spec, sink| {
            sink.write(if spec.name == "values" { Values::F32(&values) } else { Values::I64(&ids) })
        })
        .expect("written");
        let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peft/check_reward.py");
        let adapter = if full { "-".into() } else { request.out.clone() };
        let output = Command::new(&python).arg(script).args([trained, adapter, numbers]).output().expect("python runs");
        let words = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{architecture} {method}: {words}{complaint}");
        println!("{architecture} {method}: {}", words.trim());
    }
}

#[test]
fn peft_computes_the_same_logits() {
    let Some(python) = python() else { return };
    let ops = cpu();
    for (architecture, variant) in [
        ("llama", "lora"),
        ("llama", "rslora"),
        ("llama", "dora"),
        ("gpt2", "lora"),
        ("phi3", "lora"),
        ("gemma3", "lora"),
    ] {
        let folder = tempfile::tempdir().expect("folder");
        let row = |i: usize| {
            let ids: Vec<usize> = (0..20).map(|t| 6 + (i * 13 + t * 7) % 300).collect();
            format!("{{\"input_ids\": {ids:?}, \"labels\": {ids:?}}}\n")
        };
        let rows: String = (0..16).map(row).collect();
        let settings = [
            "train.steps=8",
            "train.learning_rate=2e-2",
            "train.validation_fraction=0",
            "lora.rank_pattern={q_proj=3}",
            "lora.alpha_pattern={down_proj=5}",
            &format!("lora.variant={variant}"),
        ];
        let request = trained(architecture, folder.path(), &rows, &settings);

        let mut model = decoder(&ops, architecture, false, None);
        adapter::attach_peft(&ops, &mut model, &read_peft(&request.out).expect("adapter")).expect("attached");
        let tokens: Vec<u32> = (0..24).map(|t| 6 + t * 11 % 300).collect();
        let rows: Vec<u32> = (0..24).collect();
        let batch = TokenBatch::from_documents([&tokens[..]]);
        let logits = model.logits(&ops, &batch, &rows, &Pass::evaluation(true)).expect("logits");
        let logits = ops.read(&logits).expect("read");
        let numbers = folder.path().join("logits.safetensors");
        let ids: Vec<i64> = tokens.iter().map(|t| i64::from(*t)).collect();
        let specs = [
            TensorSpec::new("input_ids", &[24], ElementType::I64),
            TensorSpec::new("logits", &[24, logits.len() / 24], ElementType::F32),
        ];
        let mut file = std::fs::File::create(&numbers).expect("file");
        write_safetensors_to(&mut file, &numbers, &specs, |spec, sink| {
            sink.write(if spec.name == "logits" { Values::F32(&logits) } else { Values::I64(&ids) })
        })
        .expect("written");

        let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peft/check_adapter.py");
        let output = Command::new(&python)
            .arg(script)
            .args([golden(architecture), request.out.clone(), numbers])
            .output()
            .expect("python runs");
        let words = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{architecture} {variant}: {words}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        println!("{architecture} {variant}: {}", words.trim());
    }
}
