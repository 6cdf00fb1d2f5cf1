//! Jobs on a GPU: one that is lost in the middle of a step, one that hangs, one
//! that is not there, one that is too small, numbers that are none. Each ends as
//! a message to act on, and keeps its checkpoint.
//!
//! The bad device is a good one below the Vulkan layer of `shaders/bad-device`:
//! the program under test is the one that users run, and sees what a driver says.

#![cfg(feature = "gpu")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use common::{House, MODEL, build, library, read, rows};
use finetuned_engine::devices::candidates;
use finetuned_service::api;
use finetuned_service::devices::{FILE, Tested, remember};
use finetuned_service::store::{Job, State};

const LAYER: &str = "VK_LAYER_FINETUNED_bad_device";

/// Whether the first GPU is Vulkan's. Where FINETUNED_REQUIRE_GPU is set, as it is
/// in CI, a machine without one fails the test; elsewhere the test says that it
/// tried nothing.
fn on_vulkan() -> bool {
    let found = candidates("gpu").unwrap_or_default();
    let there = found.first().is_some_and(|candidate| candidate.spec.starts_with("vulkan"));
    assert!(there || std::env::var_os("FINETUNED_REQUIRE_GPU").is_none(), "no GPU was found");
    if !there {
        println!("skipped: this machine has no GPU and no software driver (mesa-vulkan-drivers has one)");
    }
    there
}

/// The folder with the layer's manifest.
fn layer() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let built = build(&["bad-device"]);
        let folder = built.join("bad-device-layer");
        std::fs::create_dir_all(&folder).unwrap();
        let manifest = serde_json::json!({
            "file_format_version": "1.1.2",
            "layer": {
                "name": LAYER,
                "type": "GLOBAL",
                "library_path": built.join(library("bad_device")),
                "api_version": "1.3.0",
                "implementation_version": "1",
                "description": "makes a good device a bad one"
            }
        });
        std::fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
        folder
    })
}

/// A house whose workers compute on the first GPU, through WGSL, and trust it.
fn house(device: &str, recipe: &str) -> House {
    let mut house = House::new("");
    // Kernels that nobody has compiled yet take a software driver minutes.
    house.patience = Duration::from_secs(400);
    house.configure(&format!(
        "state_dir = \".\"\n[inbox]\nsettle = \"200ms\"\nscan_every = \"1s\"\n[workers]\nthreads = 1\nstall_timeout = \"20s\"\ndevice = \"{device}\"\n[recipe]\nbase = \"{MODEL}\"\n{recipe}"
    ));
    for candidate in candidates("gpu").unwrap_or_default() {
        let wgsl = candidate.spec.ends_with("wgsl");
        let failure = if wgsl { None } else { Some("not tried in this test".to_string()) };
        remember(&house.path(FILE), &Tested { device: candidate.identity, failure, results: Vec::new() }).unwrap();
    }
    house
}

/// Several micro-batches a step, so that it has a middle.
const RECIPE: &str = "[recipe.train]\nsteps = 16\nbatch_size = 4\nmicro_batch_size = 2\nsequence_length = 128\nvalidation_fraction = 0.2\n[recipe.lora]\nrank = 2\ndropout = 0.1\n[recipe.checkpoint]\nevery_steps = 3\n";

/// A program above the layer, with what the layer is told.
fn above_the_layer(command: &mut Command, told: &[(&str, &str)]) {
    command.env("VK_LAYER_PATH", layer()).env("VK_INSTANCE_LAYERS", LAYER).envs(told.iter().copied());
    // A service has no session.
    command.env_remove("XDG_RUNTIME_DIR");
}

fn start(house: &mut House, told: &[(&str, &str)]) {
    let mut command = house.command(env!("CARGO_BIN_EXE_finetuned"));
    above_the_layer(&mut command, told);
    house.start_with(&mut command);
}

fn adapter(job: &Job) -> Vec<u8> {
    read(&job.out.join("adapter_model.safetensors"))
}

/// Steps whose checkpoints are kept.
fn checkpoints(job: &Job) -> Vec<usize> {
    let entries = std::fs::read_dir(job.out.join("checkpoints")).into_iter().flatten().filter_map(Result::ok);
    let step = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().strip_prefix("step-")?.parse().ok();
    entries.filter_map(step).collect()
}

/// The step that each of a job's workers began from.
fn began_from(house: &House, id: i64) -> Vec<u64> {
    let started = house.events(id).into_iter().filter(|row| row.kind == "started");
    started.map(|row| row.body["resumed_from"].as_u64().unwrap()).collect()
}

fn notes(house: &House, id: i64) -> String {
    let notes = house.events(id).into_iter().filter(|row| row.kind == "note");
    notes.map(|row| row.body["message"].as_str().unwrap().to_string() + "\n").collect()
}

/// The daemon ends and is started anew, above a driver that is well.
fn recover(house: &mut House) {
    house.signal(rustix::process::Signal::TERM);
    house.end();
    start(house, &[]);
}

fn act(house: &House, id: i64, wish: &api::Endpoint<(), (), api::JobView>) {
    house.client().ask_of(wish, id, &(), &()).unwrap();
}

#[test]
fn a_device_lost_in_the_middle_of_a_step_pauses_its_job_which_goes_on_to_the_same_bits() {
    if !on_vulkan() {
        return;
    }
    let data = rows("apples", 30);
    // A run that is left alone, and how often it submits work.
    let mut still = house("gpu", RECIPE);
    let count = still.path("count");
    start(&mut still, &[("BAD_DEVICE_COUNT", count.to_str().unwrap())]);
    still.drop_file("apples.jsonl", &data);
    let want = adapter(&still.wait_for(1, State::Succeeded).job);
    let submissions: u64 = std::fs::read_to_string(&count).unwrap().parse().unwrap();
    // Mesa looks for a display, and would complain of it in each process.
    let words = String::from_utf8(read(&still.path("jobs/1/worker.log"))).unwrap();
    assert!(!words.contains("XDG_RUNTIME_DIR"), "{words}");
    still.kill_daemon();

    // Forward, backward, update: wherever in a step these fall.
    for percent in [50, 63, 77] {
        let mut house = house("gpu", RECIPE);
        start(&mut house, &[("BAD_DEVICE_LOST_AT", &(submissions * percent / 100).to_string())]);
        house.drop_file("apples.jsonl", &data);
        let job = house.wait_for(1, State::Paused).job;
        let why = job.error.clone().unwrap_or_default();
        for part in ["the device vulkan:0", "was lost during", "finetune resume", "last checkpoint"] {
            assert!(why.contains(part), "{percent}%: {why}");
        }
        assert!(house.receipt("apples", "finetune resume 1").contains("was lost during"));
        assert!(!checkpoints(&job).is_empty(), "{percent}%: its checkpoint is kept");
        assert!(!job.out.join("adapter_model.safetensors").exists());

        recover(&mut house);
        assert_eq!(house.job(1).unwrap().job.state, State::Paused, "it waits for the user");
        act(&house, 1, &api::RESUME);
        let job = house.wait_for(1, State::Succeeded).job;
        let from = began_from(&house, 1);
        assert!(from.len() == 2 && from[0] == 0 && from[1] >= 3, "{percent}%: {from:?}");
        assert!(adapter(&job) == want, "{percent}%: the adapter differs from that of a run left alone");
        assert!(!notes(&house, 1).contains("CPU"), "nothing fell back to the CPU");
    }

    // A driver that swallows its work and never answers.
    let mut house = house("gpu", RECIPE);
    start(&mut house, &[("BAD_DEVICE_HANGS_AT", &(submissions * 7 / 10).to_string())]);
    house.drop_file("apples.jsonl", &data);
    let job = house.wait_for(1, State::Failed).job;
    let why = job.error.clone().unwrap_or_default();
    for part in ["no progress for 20s", "may hang", "finetune retry"] {
        assert!(why.contains(part), "{why}");
    }
    assert!(!checkpoints(&job).is_empty(), "its checkpoint is kept");
    recover(&mut house);
    house.client().ask_of(&api::RETRY, 1, &(), &api::Retry::default()).unwrap();
    assert!(adapter(&house.wait_for(1, State::Succeeded).job) == want, "the adapter differs");
    assert!(began_from(&house, 1)[1] >= 3);
}

/// A machine whose Vulkan has no driver.
fn without_drivers(command: &mut Command) {
    command.env("VK_DRIVER_FILES", "/nowhere.json").env("VK_ICD_FILENAMES", "/nowhere.json");
}

#[test]
fn without_a_driver_a_gpu_that_was_asked_for_pauses_the_job_and_auto_takes_the_cpu_with_a_note() {
    let mut house = house("gpu", RECIPE);
    let mut command = house.command(env!("CARGO_BIN_EXE_finetuned"));
    without_drivers(&mut command);
    house.start_with(&mut command);
    house.drop_file("apples.jsonl", &rows("apples", 20));
    let why = house.wait_for(1, State::Paused).job.error.unwrap();
    for part in ["there is no gpu:0", "install the card's Vulkan driver", "\"cpu\"", "finetune resume"] {
        assert!(why.contains(part), "{why}");
    }

    house.signal(rustix::process::Signal::TERM);
    house.end();
    let config = String::from_utf8(read(&house.config())).unwrap();
    house.configure(&config.replace("device = \"gpu\"", "device = \"auto\""));
    house.start_with(&mut command);
    act(&house, 1, &api::RESUME);
    house.wait_for(1, State::Succeeded);
    let notes = notes(&house, 1);
    assert!(notes.contains("the run computes on the CPU"), "{notes}");
}

/// `finetune train` of a few rows.
fn train(house: &House, more: &[&str], prepare: impl FnOnce(&mut Command)) -> Output {
    let data = house.path("data.jsonl");
    std::fs::write(&data, rows("lamps", 20)).unwrap();
    let mut command = house.command(env!("CARGO_BIN_EXE_finetune"));
    command.args(["train", "--model", MODEL, "--method", "lora", "--device", "gpu", "--data"]).arg(&data);
    command.arg("--out").arg(house.path("out")).args(["--set", "train.sequence_length=128"]).args(more);
    prepare(&mut command);
    command.output().unwrap()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_command_says_what_is_wrong_with_a_device_and_what_to_do() {
    let house = house("gpu", "");
    let run = train(&house, &[], without_drivers);
    let said = words(&run);
    assert_eq!(run.status.code(), Some(69), "{said}");
    assert!(said.contains("install the card's Vulkan driver") && said.contains("the same command goes on"), "{said}");

    if !on_vulkan() {
        return;
    }
    // A driver that can draw and hardly compute.
    let run = train(&house, &[], |command| above_the_layer(command, &[("BAD_DEVICE_UNITS", "32")]));
    let said = words(&run);
    assert_eq!(run.status.code(), Some(69), "{said}");
    assert!(said.contains("kernels need 64 units") && said.contains("vulkan:0"), "{said}");

    // Other programs hold what the device has.
    let run = train(&house, &[], |command| above_the_layer(command, &[("BAD_DEVICE_FULL_AT", "12000000")]));
    let said = words(&run);
    assert_eq!(run.status.code(), Some(1), "{said}");
    assert!(said.contains("no memory for") && said.contains("other programs hold it"), "{said}");

    // Too little memory: told before the first step, with the numbers.
    let memory = (40u64 << 20).to_string();
    let run = train(&house, &[], |command| above_the_layer(command, &[("BAD_DEVICE_MEMORY", &memory)]));
    let said = words(&run);
    assert_eq!(run.status.code(), Some(1), "{said}");
    for part in ["MiB of memory, vulkan:0", "has 40.0 MiB", "train.gradient_checkpointing = true"] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn a_run_that_diverges_on_a_gpu_fails_with_step_and_cause_and_keeps_its_checkpoint() {
    if !on_vulkan() {
        return;
    }
    let recipe = "method = \"full\"\noptimizer = \"sgd\"\n[recipe.train]\nsteps = 8\nbatch_size = 4\nsequence_length = 128\nlearning_rate = 1e30\nmax_grad_norm = 0\nwarmup_ratio = 0.0\nvalidation_fraction = 0.0\n[recipe.checkpoint]\nevery_steps = 1\n";
    let mut house = house("gpu", recipe);
    house.start();
    house.drop_file("apples.jsonl", &rows("apples", 20));
    let job = house.wait_for(1, State::Failed).job;
    let why = job.error.clone().unwrap();
    for part in ["step 2: ", "is not a finite number", "the last checkpoint is kept", "train.learning_rate"] {
        assert!(why.contains(part), "{why}");
    }
    assert_eq!(checkpoints(&job), [1]);
}
