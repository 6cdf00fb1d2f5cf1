//! `finetune train` in the foreground.

mod common;

use common::{House, MODEL, read, rows};

fn train(house: &House, out: &str, more: &[&str]) -> std::process::Output {
    let data = house.path("data.jsonl");
    std::fs::write(&data, rows("lamps", 20)).unwrap();
    let out = house.path(out);
    let mut words = vec![
        "train",
        "--model",
        MODEL,
        "--data",
        data.to_str().unwrap(),
        "--method",
        "lora",
        "--out",
        out.to_str().unwrap(),
        "--device",
        "cpu",
        "--threads",
        "1",
        "--set",
        "train.steps=6",
        "--set",
        "train.batch_size=2",
        "--set",
        "train.sequence_length=128",
        "--set",
        "train.validation_fraction=0.2",
        "--set",
        "lora.rank=2",
    ];
    words.extend(more);
    house.finetune(&words)
}

fn steps(house: &House, out: &str) -> Vec<serde_json::Value> {
    let text = String::from_utf8(read(&house.path(out).join("metrics.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn metrics_result_and_report_are_written_and_a_finished_run_says_so() {
    let house = House::new("");
    let run = train(&house, "out", &[]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let lines = steps(&house, "out");
    assert_eq!(lines[0]["step"], 0);
    assert!(lines[0]["validation_loss"].as_f64().is_some(), "measured before any update");
    let last = lines.last().unwrap();
    assert_eq!(last["step"], 6);
    assert!(last["validation_loss"].as_f64().is_some(), "measured at the end");
    for key in ["loss", "grad_norm", "learning_rate", "tokens", "trained_tokens", "seconds", "tokens_per_second"] {
        assert!(last[key].as_f64().is_some(), "{key}");
    }
    assert!(house.path("out/report.html").exists());
    let again = train(&house, "out", &[]);
    assert!(again.status.success());
    assert!(String::from_utf8_lossy(&again.stdout).contains("finished"));
    let other = train(&house, "out", &["--set", "train.seed=1"]);
    assert!(!other.status.success(), "another run's folder is not taken over");
    assert!(train(&house, "out", &["--set", "train.seed=1", "--fresh"]).status.success());
}

#[test]
fn the_daemon_and_the_foreground_make_the_same_bytes() {
    let recipe = "[recipe.train]\nsteps = 6\nbatch_size = 2\nsequence_length = 128\nvalidation_fraction = 0.2\n[recipe.lora]\nrank = 2\n";
    let mut house = House::new(recipe);
    assert!(train(&house, "out", &[]).status.success());
    house.start();
    house.drop_file("lamps.jsonl", &rows("lamps", 20));
    let job = house.wait_for(1, finetuned_service::store::State::Succeeded).job;
    assert_eq!(read(&job.out.join("adapter_model.safetensors")), read(&house.path("out/adapter_model.safetensors")));
}

#[test]
fn events_as_json_and_the_plan() {
    let house = House::new("");
    let run = train(&house, "out", &["--json"]);
    let events: Vec<serde_json::Value> =
        String::from_utf8(run.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.iter().filter(|event| event["event"] == "step").count(), 6);
    assert_eq!(events.last().unwrap()["event"], "finished");
    let data = house.path("data.jsonl");
    let plan =
        house.finetune(&["plan", "--model", MODEL, "--data", data.to_str().unwrap(), "--method", "lora", "--json"]);
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert!(plan["peak_bytes"].as_u64().unwrap() > 0);
    let check = house.finetune(&["data", "check", data.to_str().unwrap(), "--model", MODEL]);
    assert!(String::from_utf8_lossy(&check.stdout).contains("«"));
}

#[test]
fn a_model_that_is_nowhere_is_one_line() {
    let house = House::new("");
    let data = house.path("d.jsonl");
    std::fs::write(&data, rows("x", 2)).unwrap();
    let out = house.path("out");
    let run = house.finetune(&[
        "train",
        "--model",
        "no-such-model",
        "--data",
        data.to_str().unwrap(),
        "--method",
        "lora",
        "--out",
        out.to_str().unwrap(),
    ]);
    assert_eq!(run.status.code(), Some(1));
    let words = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(words.trim().lines().count(), 1, "{words}");
    assert!(words.contains("no-such-model"));
}

#[test]
fn without_network_and_model_the_demo_says_so_in_one_line() {
    let house = House::new("");
    let mut demo = std::process::Command::new(env!("CARGO_BIN_EXE_finetune"));
    // Nobody listens at the port of discarding, and there is no pip.
    let run = demo
        .args(["demo"])
        .current_dir(house.path(""))
        .env("HOME", house.path("home"))
        .env("HF_HOME", house.path("hf"))
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .env("FINETUNED_MODELS_DIR", house.path("models"))
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(1));
    let words = String::from_utf8_lossy(&run.stderr).into_owned();
    let last = words.trim().lines().last().unwrap();
    assert!(
        last.contains("cannot be fetched")
            && last.contains("there is no pip")
            && last.contains("give the path of a model"),
        "{words}"
    );
}

#[test]
fn the_demo_runs_from_the_dataset_to_the_answers() {
    let house = House::new("");
    let state = house.path("demo");
    let mut demo = std::process::Command::new(env!("CARGO_BIN_EXE_finetune"));
    let run = demo
        .args([
            "demo",
            "--model",
            MODEL,
            "--state-dir",
            state.to_str().unwrap(),
            "--set",
            "train.steps=3",
            "--set",
            "train.batch_size=2",
        ])
        .args(["--set", "train.sequence_length=1024", "--set", "data.max_rows=12"])
        .current_dir(house.path(""))
        .env("HOME", house.path("home"))
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(run.status.success(), "{words}\n{}", String::from_utf8_lossy(&run.stderr));
    for part in ["dropped", "step 3/3", "before", "after", "validation loss", "receipt", "report.html"] {
        assert!(words.contains(part), "{part} in {words}");
    }
    let report = String::from_utf8(read(&state.join("adapters/repair-desk-1/report.html"))).unwrap();
    assert!(report.contains("Before and after"));
    let answer = house.finetune(&["status"]);
    assert_eq!(answer.status.code(), Some(69), "the demo's daemon is gone, and none was started elsewhere");
}

#[test]
fn a_service_of_the_user_is_written_and_removed() {
    let house = House::new("");
    let home = house.path("home");
    let service = |words: &[&str]| {
        // No service manager is found, so none is touched.
        std::process::Command::new(env!("CARGO_BIN_EXE_finetune"))
            .arg("service")
            .args(words)
            .env("HOME", &home)
            .env("PATH", "/nonexistent")
            .output()
            .unwrap()
    };
    let installed = service(&["install", "--user", "--no-start"]);
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    let unit = home.join(".config/systemd/user/finetuned.service");
    let text = String::from_utf8(read(&unit)).unwrap();
    assert!(text.contains("Type=notify") && text.contains("finetuned\n"), "{text}");
    assert!(service(&["uninstall", "--user"]).status.success());
    assert!(!unit.exists());
    assert!(String::from_utf8_lossy(&service(&["status", "--user"]).stdout).contains("not installed"));
}
