//! Plugin libraries in the engine's own runs: an optimizer that steps on the
//! host, and what plans count of optimizers.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;
use finetuned_engine::plan;
use finetuned_engine::recipe::{self, Recipe};
use finetuned_engine::{Control, Event, Observer, Outcome, PluginLibrary, TrainRequest, train};

/// Builds the example of the escape hatch and gives it as a request names it.
fn host_momentum() -> PluginLibrary {
    // The target folder of this very test, so that dependencies are there.
    let profile = std::env::current_exe().expect("a path").ancestors().nth(2).expect("a profile").to_path_buf();
    let release = profile.ends_with("release");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--offline", "--quiet", "-p", "host-momentum", "--target-dir"])
        .arg(profile.parent().expect("a target folder"))
        .args(release.then_some("--release"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let name = format!("{}host_momentum{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let origin = PathBuf::from("/plugins").join(&name);
    PluginLibrary { path: profile.join(name), sha256: "abcdef".repeat(10), origin }
}

#[derive(Default)]
struct Watcher {
    events: Vec<Event>,
    stop_after: Option<usize>,
}

impl Observer for Watcher {
    fn event(&mut self, event: &Event) {
        self.events.push(event.clone());
    }

    fn control(&mut self) -> Control {
        let done = |event: &Event| matches!(event, Event::Step(metrics) if Some(metrics.step) >= self.stop_after);
        match self.stop_after.is_some() && self.events.iter().any(done) {
            true => Control::Stop,
            false => Control::Continue,
        }
    }
}

fn request(folder: &Path, out: &str, settings: &[&str]) -> TrainRequest {
    let data = folder.join("rows.jsonl");
    let line = |i: usize| {
        let ids: Vec<usize> = (0..12).map(|t| 6 + (i % 7 * 11 + t * 3) % 300).collect();
        format!("{{\"input_ids\": {ids:?}, \"labels\": {ids:?}}}\n")
    };
    std::fs::write(&data, (0..24).map(line).collect::<String>()).expect("dataset");
    let mut table = toml::Table::new();
    let fixed = ["train.steps=8", "train.batch_size=4", "train.learning_rate=0.05", "train.validation_fraction=0.0"];
    for setting in fixed.iter().chain(settings) {
        recipe::set(&mut table, setting).expect("setting");
    }
    TrainRequest {
        data,
        validation: None,
        adapter: None,
        out: folder.join(out),
        recipe: Recipe { base: base("llama"), ..Recipe::from_table(&table).expect("recipe") },
        device: "cpu".into(),
        fresh: false,
        threads: Some(1),
        plugins: Vec::new(),
        accept_plugin_change: false,
    }
}

fn losses(out: &Path) -> Vec<f64> {
    let lines = finetuned_engine::run::metrics::read(out).expect("metrics");
    lines.iter().filter_map(|line| line["loss"].as_f64()).collect()
}

#[test]
fn an_optimizer_on_the_host_trains_as_its_program_does_and_resumes_to_the_byte() {
    let folder = tempfile::tempdir().expect("folder");
    let library = host_momentum();
    let on_host = |out: &str| TrainRequest {
        plugins: vec![library.clone()],
        ..request(folder.path(), out, &["optimizer=host-momentum"])
    };
    let whole = on_host("whole");
    let mut watcher = Watcher::default();
    assert!(matches!(train(&whole, &mut watcher).expect("a run"), Outcome::Finished(_)));
    let told = |event: &Event| matches!(event, Event::Note { message } if message.contains("host memory") && message.contains("MB"));
    assert!(watcher.events.iter().any(told), "what it costs is told");

    let program = request(folder.path(), "program", &["optimizer.name=sgd", "optimizer.momentum=0.9"]);
    train(&program, &mut Watcher::default()).expect("a run");
    for (a, b) in losses(&whole.out).iter().zip(&losses(&program.out)) {
        assert!((a - b).abs() < 1e-5, "{a} against {b}");
    }

    let parts = on_host("parts");
    let stopped = train(&parts, &mut Watcher { stop_after: Some(3), ..Watcher::default() }).expect("a stop");
    assert_eq!(stopped, Outcome::Stopped { step: 3 });
    assert!(matches!(train(&parts, &mut Watcher::default()).expect("a run"), Outcome::Finished(_)));
    let bytes = |request: &TrainRequest| std::fs::read(request.out.join("adapter_model.safetensors")).expect("adapter");
    assert_eq!(bytes(&whole), bytes(&parts));

    // Another build is refused, naming both, unless told.
    let again = on_host("again");
    train(&again, &mut Watcher { stop_after: Some(3), ..Watcher::default() }).expect("a stop");
    let mut rebuilt = again.clone();
    rebuilt.plugins[0].sha256 = "012345".repeat(10);
    let error = train(&rebuilt, &mut Watcher::default()).expect_err("another build").to_string();
    assert!(error.contains("abcdefabcdef") && error.contains("012345012345"), "{error}");
    rebuilt.accept_plugin_change = true;
    assert!(matches!(train(&rebuilt, &mut Watcher::default()).expect("told"), Outcome::Finished(_)));
    let run: serde_json::Value =
        serde_json::from_slice(&std::fs::read(rebuilt.out.join("run.json")).expect("run.json")).expect("json");
    assert_eq!(run["plugins"][1]["sha256"], "012345".repeat(10));
}

#[test]
fn a_plan_counts_what_an_optimizer_keeps() {
    let folder = tempfile::tempdir().expect("folder");
    let part = |request: &TrainRequest, name: &str| {
        let plan = plan(request).expect("a plan");
        plan.parts.iter().find(|part| part.name == name).map(|part| part.bytes)
    };
    let adamw = request(folder.path(), "out", &[]);
    let states = part(&adamw, "optimizer state").expect("optimizer state");
    assert_eq!(part(&adamw, "optimizer step"), None, "AdamW is one pass and keeps no temporaries");
    // Orthogonalising a matrix takes several of its size.
    let muon = request(folder.path(), "out", &["optimizer=muon"]);
    assert!(part(&muon, "optimizer step").expect("temporaries") > 0);
    let host =
        TrainRequest { plugins: vec![host_momentum()], ..request(folder.path(), "out", &["optimizer=host-momentum"]) };
    assert_eq!(part(&host, "optimizer state"), Some(states / 2), "one state in place of two");
    assert!(part(&host, "optimizer step").expect("copies") > 0);
}
