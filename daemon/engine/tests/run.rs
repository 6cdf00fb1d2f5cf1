//! Whole runs through the engine's door: files, resume, refusals.

mod common;

use common::runs::*;
use common::*;
use finetuned_engine::metrics::{Change, TOKEN_ACCURACY};
use finetuned_engine::{EngineError, Event, Outcome, TrainRequest, train};
use finetuned_formats::{ModelFiles, read_peft};

fn adapter_bytes(request: &TrainRequest) -> Vec<u8> {
    std::fs::read(request.out.join("adapter_model.safetensors")).expect("adapter")
}

fn metrics(request: &TrainRequest) -> Vec<serde_json::Value> {
    finetuned_engine::run::metrics::read(&request.out).expect("metrics")
}

#[test]
fn a_run_leaves_adapter_metrics_and_a_better_loss() {
    let folder = tempfile::tempdir().expect("folder");
    let request = request(folder.path(), "out", &["train.validation_fraction=0.2", "train.epochs=6"]);
    let (outcome, events) = run(&request);
    let Outcome::Finished(summary) = outcome else { panic!("{outcome:?}") };
    assert!(summary.validation_after < summary.tally.validation_before, "{summary:?}");
    assert_eq!(summary.reload_difference, 0.0);
    let lines = metrics(&request);
    assert_eq!(lines[0]["step"], 0);
    assert!(lines[0]["validation_loss"].is_f64() && lines[0].get("loss").is_none());
    assert_eq!(lines.len(), 13);
    for (i, line) in lines.iter().enumerate().skip(1) {
        assert_eq!(line["step"], i);
        for key in ["loss", "grad_norm", "learning_rate", "tokens", "trained_tokens", "seconds", "tokens_per_second"] {
            assert!(line[key].is_number(), "{key} in {line}");
        }
    }
    assert!(lines[12]["validation_loss"].is_f64());
    // What the model predicts right, measured with the validation loss.
    let name = TOKEN_ACCURACY.validation_name();
    let (first, last) = (lines[0][&name].as_f64().expect("a share"), lines[12][&name].as_f64().expect("a share"));
    assert!(first < last && first >= 0.0 && last <= 1.0, "{first} {last}");
    assert_eq!(summary.change(&TOKEN_ACCURACY), Some(Change { before: first, after: last }));
    let peft = read_peft(&request.out).expect("adapter");
    assert_eq!(peft.modules().len(), 14);
    assert!(peft.tensors.iter().any(|(name, (_, v))| name.contains("lora_B") && v.iter().any(|x| *x != 0.0)));
    assert!(!request.out.join("checkpoints").exists() && !request.out.join(".tmp-output").exists());
    assert!(matches!(events.last(), Some(Event::Finished(_))));
    // The same command again says so, and changes nothing.
    let before = adapter_bytes(&request);
    assert!(matches!(run(&request).0, Outcome::AlreadyFinished(_)));
    assert_eq!(before, adapter_bytes(&request));
}

#[test]
fn an_interrupted_run_ends_with_the_same_bytes() {
    for settings in [
        &["lora.dropout=0.1", "train.validation_fraction=0.1", "train.validation_every=3"][..],
        &["train.packing=true", "train.sequence_length=40", "lora.variant=dora"],
        &["method=qlora", "optimizer.name=adamw-8bit", "train.gradient_checkpointing=true"],
        &["optimizer.name=schedule-free-adamw"],
        &["optimizer.name=muon"],
    ] {
        let folder = tempfile::tempdir().expect("folder");
        let whole = request(folder.path(), "whole", settings);
        run(&whole);
        let cut = request(folder.path(), "cut", settings);
        // Cancelled after step 6: only the checkpoint of step 4 is there, as after a kill.
        let mut watcher = Watcher { cancel_after: Some(6), ..Watcher::default() };
        assert_eq!(train(&cut, &mut watcher).expect("cancelled"), Outcome::Cancelled { step: 6 });
        // Then stopped after step 7, with a checkpoint.
        let mut watcher = Watcher { stop_after: Some(7), ..Watcher::default() };
        assert_eq!(train(&cut, &mut watcher).expect("stopped"), Outcome::Stopped { step: 7 });
        let started = watcher.events.iter().find_map(|e| match e {
            Event::Started { resumed_from, .. } => Some(*resumed_from),
            _ => None,
        });
        assert_eq!(started, Some(4), "{settings:?}");
        let (_, events) = run(&cut);
        assert!(events.iter().any(|e| matches!(e, Event::Started { resumed_from: 7, .. })));
        assert_eq!(adapter_bytes(&whole), adapter_bytes(&cut), "{settings:?}");
        let losses = |r: &TrainRequest| {
            metrics(r)
                .iter()
                .map(|l| (l["step"].clone(), l["loss"].clone(), l["validation_loss"].clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(losses(&whole), losses(&cut), "{settings:?}");
    }
}

#[test]
fn full_fine_tuning_writes_a_model_that_loads() {
    for architecture in ["llama", "gpt2", "gemma3"] {
        let folder = tempfile::tempdir().expect("folder");
        let mut request = request(folder.path(), "out", &["method=full", "train.steps=3"]);
        request.recipe.base = base(architecture);
        run(&request);
        let written = ModelFiles::open(&request.out).expect("a model folder");
        let base = files(architecture);
        assert_eq!(written.config.family, base.config.family);
        let mut base_names = base.tensors.names();
        base_names.sort();
        let mut names = written.tensors.names();
        names.sort();
        assert_eq!(names, base_names);
        for file in ["config.json", "tokenizer.json", "model.safetensors"] {
            assert!(request.out.join(file).is_file(), "{architecture}: {file}");
        }
    }
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let folder = tempfile::tempdir().expect("folder");
    let whole = request(folder.path(), "whole", &[]);
    run(&whole);
    let cut = request(folder.path(), "cut", &[]);
    let mut watcher = Watcher { cancel_after: Some(9), ..Watcher::default() };
    train(&cut, &mut watcher).expect("cancelled");
    let newest = cut.out.join("checkpoints/step-00000008/weights.safetensors");
    let mut bytes = std::fs::read(&newest).expect("checkpoint");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&newest, bytes).expect("damage");
    let (_, events) = run(&cut);
    assert!(events.iter().any(|e| matches!(e, Event::Note { message } if message.contains("step-00000008"))));
    assert!(events.iter().any(|e| matches!(e, Event::Started { resumed_from: 4, .. })));
    assert_eq!(adapter_bytes(&whole), adapter_bytes(&cut));
}

#[test]
fn another_run_in_the_same_folder_is_refused_until_fresh() {
    let folder = tempfile::tempdir().expect("folder");
    let first = request(folder.path(), "out", &[]);
    run(&first);
    let mut second = request(folder.path(), "out", &["train.learning_rate=1e-3"]);
    let error = train(&second, &mut Watcher::default()).expect_err("another run").to_string();
    assert!(error.contains("train.learning_rate was 0.005, is 0.001") && error.contains("--fresh"), "{error}");
    second.fresh = true;
    assert!(matches!(run(&second).0, Outcome::Finished(_)));
}

#[test]
fn a_run_can_start_from_an_adapter() {
    let folder = tempfile::tempdir().expect("folder");
    let mut request = request(folder.path(), "out", &["train.steps=1", "train.learning_rate=1e-9"]);
    request.adapter = Some(golden("llama/lora"));
    run(&request);
    let (start, end) = (read_peft(&golden("llama/lora")).expect("start"), read_peft(&request.out).expect("end"));
    assert_eq!(start.tensors.keys().collect::<Vec<_>>(), end.tensors.keys().collect::<Vec<_>>());
    assert_eq!((end.config.rank, end.config.alpha), (4, 8.0));
    for (name, (_, values)) in &start.tensors {
        assert!(largest_difference(values, &end.tensors[name].1) < 1e-6, "{name}");
    }
}

#[test]
fn a_diverging_run_says_what_is_not_finite_and_keeps_its_checkpoint() {
    let folder = tempfile::tempdir().expect("folder");
    let settings =
        ["train.learning_rate=1e30", "train.max_grad_norm=0", "checkpoint.every_steps=1", "train.warmup_ratio=0"];
    let request = request(folder.path(), "out", &settings);
    match train(&request, &mut Watcher::default()) {
        Err(EngineError::NotFinite { step, what, remedy }) => {
            assert!(step >= 2 && !what.is_empty() && remedy.contains("learning_rate"), "{step} {what} {remedy}");
        }
        other => panic!("{other:?}"),
    }
    assert!(request.out.join("checkpoints/step-00000001").is_dir());
}

#[test]
fn early_stop_keeps_the_best_weights() {
    let folder = tempfile::tempdir().expect("folder");
    // A rate that soon overshoots: the held-out loss rises.
    let settings = [
        "train.learning_rate=0.3",
        "train.schedule=constant",
        "train.steps=40",
        "train.validation_fraction=0.2",
        "train.validation_every=1",
        "train.early_stop_patience=3",
    ];
    let request = request(folder.path(), "out", &settings);
    let (outcome, _) = run(&request);
    let Outcome::Finished(summary) = outcome else { panic!("{outcome:?}") };
    assert!(summary.tally.stopped_early && summary.steps < 40, "{summary:?}");
    assert_eq!(summary.kept_step, summary.steps - 3);
    let best = metrics(&request).iter().skip(1).filter_map(|l| l["validation_loss"].as_f64()).fold(f64::MAX, f64::min);
    assert_eq!(summary.validation_after, Some(best));
}

#[test]
fn wrong_data_for_the_loss_is_named() {
    let folder = tempfile::tempdir().expect("folder");
    let request = request(folder.path(), "out", &["loss=dpo"]);
    let error = train(&request, &mut Watcher::default()).expect_err("rows to imitate").to_string();
    assert!(error.contains("rows to imitate") && error.contains("chosen"), "{error}");
    let mut other = request.clone();
    other.recipe.loss.name = "dpoo".into();
    let error = train(&other, &mut Watcher::default()).expect_err("unknown loss").to_string();
    assert!(error.contains("did you mean") && error.contains("dpo"), "{error}");
}

#[test]
fn two_processes_cannot_train_into_one_folder() {
    let folder = tempfile::tempdir().expect("folder");
    let request = request(folder.path(), "out", &[]);
    std::fs::create_dir_all(&request.out).expect("folder");
    let lock = std::fs::File::create(request.out.join("run.lock")).expect("lock");
    lock.lock().expect("locked");
    let error = train(&request, &mut Watcher::default()).expect_err("locked").to_string();
    assert!(error.contains("another process"), "{error}");
}
