//! Plugin libraries in real runs: found, checked, loaded by workers, recorded;
//! and hostile ones, each of which fails its own job and nothing else.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use common::{House, build, library, read, rows};
use finetuned_service::store::{Job, State};

const SHORT: &str = "[recipe.train]\nsteps = 3\nbatch_size = 2\nsequence_length = 128\nvalidation_fraction = 0.2\n[recipe.lora]\nrank = 2\n";

/// The folder with the libraries of the example plugins, built once.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build(&["hard-tokens", "signum", "hostile"]))
}

/// A house with a folder of plugins.
struct Lab {
    house: House,
}

impl Lab {
    fn new(config: &str) -> Lab {
        let house = House::new(config);
        std::fs::create_dir(house.path("plugins")).unwrap();
        Lab { house }
    }

    /// Installs a library; `build` makes it another build of the same plugins,
    /// because what follows the last section is not loaded.
    fn install(&self, name: &str, build: &str) {
        let mut bytes = read(&built().join(library(name)));
        bytes.extend_from_slice(build.as_bytes());
        let aside = self.house.path("plugins/.new");
        std::fs::write(&aside, bytes).unwrap();
        std::fs::rename(aside, self.house.path("plugins").join(library(name))).unwrap();
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.house.command(program);
        command.env("FINETUNED_PLUGIN_PATH", self.house.path("plugins"));
        command
    }

    fn start(&mut self) {
        let mut command = self.command(env!("CARGO_BIN_EXE_finetuned"));
        self.house.start_with(&mut command);
    }

    fn finetune(&self, words: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_finetune")).args(words).output().unwrap()
    }

    /// What the command prints, whichever way it ends.
    fn says(&self, words: &[&str]) -> String {
        let output = self.finetune(words);
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    /// Hands in a dataset of its own with these settings.
    fn submit(&self, name: &str, settings: &[&str]) -> Output {
        let data = self.house.path(&format!("{name}.jsonl"));
        std::fs::write(&data, rows(name, 6)).unwrap();
        let mut words = vec!["submit", data.to_str().unwrap()];
        settings.iter().for_each(|setting| words.extend(["--set", setting]));
        self.finetune(&words)
    }

    fn failed(&self, id: i64) -> String {
        self.house.wait_for(id, State::Failed).job.error.unwrap()
    }

    /// Whether the daemon has mapped a plugin library.
    fn daemon_has_loaded_a_plugin(&self) -> bool {
        let pid = self.house.daemon.as_ref().unwrap().id();
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        maps.contains("plugin-copies") || maps.contains("/plugins/")
    }
}

fn run_file(job: &Job) -> serde_json::Value {
    serde_json::from_slice(&read(&job.out.join("run.json"))).unwrap()
}

#[test]
fn a_loss_and_an_optimizer_of_ones_own_train_through_the_inbox() {
    let mut lab = Lab::new(SHORT);
    lab.install("hard_tokens", "");
    lab.install("signum", "");
    lab.start();
    let house = &lab.house;
    house.drop_file("b.toml", "[loss]\nname = \"hard-tokens\"\nlaen = 0.5\n");
    house.drop_file("b.jsonl", &rows("b", 20));
    let receipt = house.receipt("b", "REFUSED");
    assert!(receipt.contains("b.toml:3: 'hard-tokens' has no parameter 'laen' (did you mean 'lean'?)"), "{receipt}");
    assert!(house.status().jobs.is_empty(), "nothing is queued");

    house.drop_file("a.toml", "optimizer = \"signum\"\n[loss]\nname = \"hard-tokens\"\nlean = 0.5\n");
    house.drop_file("a.jsonl", &rows("a", 20));
    let job = house.wait_for(1, State::Succeeded).job;
    assert!(!lab.daemon_has_loaded_a_plugin());
    assert_eq!(job.plugins.len(), 2);
    let recorded = run_file(&job);
    for (at, name) in ["hard-tokens", "signum"].into_iter().enumerate() {
        let plugin = &recorded["plugins"][at];
        assert_eq!((plugin["name"].as_str(), plugin["version"].as_str()), (Some(name), Some("0.1.0")));
        assert_eq!(plugin["sha256"].as_str().unwrap(), job.plugins[at].library.sha256);
        assert!(plugin["origin"].as_str().unwrap().ends_with(&library(&name.replace('-', "_"))), "{plugin}");
    }
    let receipt = house.receipt("a", "DONE");
    assert!(receipt.contains("hard-tokens 0.1.0") && receipt.contains("signum 0.1.0"), "{receipt}");

    // The foreground command finds the same plugins and trains the same bytes.
    let out = house.path("out");
    let run = lab.finetune(&[
        "train",
        "--model",
        common::MODEL,
        "--data",
        house.path("inbox/a.jsonl").to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
        "--threads",
        "1",
        "--device",
        "cpu",
        "--recipe",
        house.path("inbox/a.toml").to_str().unwrap(),
        "--set",
        "train={steps=3,batch_size=2,sequence_length=128,validation_fraction=0.2}",
        "--set",
        "lora.rank=2",
    ]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(read(&out.join("adapter_model.safetensors")), read(&job.out.join("adapter_model.safetensors")));

    // The same data with another build of its plugin is another job.
    lab.install("hard_tokens", "another build");
    house.drop_file("c.toml", "optimizer = \"signum\"\n[loss]\nname = \"hard-tokens\"\nlean = 0.5\n");
    house.drop_file("c.jsonl", &rows("a", 20));
    house.wait_for(2, State::Succeeded);
}

#[test]
fn a_job_keeps_its_build_and_another_is_taken_only_when_told() {
    let mut lab = Lab::new(
        "loss = \"hard-tokens\"\n[recipe.train]\nsteps = 100000\nbatch_size = 2\nsequence_length = 128\nvalidation_fraction = 0.0\n[recipe.lora]\nrank = 2\n[recipe.checkpoint]\nevery_steps = 5\n",
    );
    lab.install("hard_tokens", "");
    lab.start();
    assert!(lab.submit("a", &[]).status.success());
    lab.house.wait_for_step(1, 2);
    assert!(lab.finetune(&["pause", "1"]).status.success());
    let paused = lab.house.wait_for(1, State::Paused).job;
    let manifest = std::fs::read_dir(paused.out.join("checkpoints")).unwrap().flatten().any(|checkpoint| {
        let files = std::fs::read_dir(checkpoint.path()).unwrap().flatten();
        let text: String = files.filter_map(|file| std::fs::read_to_string(file.path()).ok()).collect();
        text.contains(&paused.plugins[0].library.sha256)
    });
    assert!(manifest, "a checkpoint names the build");

    // The file is replaced while the job waits: it goes on with what it had.
    lab.install("hard_tokens", "another build");
    assert!(lab.finetune(&["resume", "1"]).status.success());
    lab.house.wait_for_step(1, paused.progress.step + 1);
    assert!(lab.finetune(&["cancel", "1"]).status.success());
    lab.house.wait_for(1, State::Cancelled);

    // A retry takes the file that is there, and that is refused ...
    assert!(lab.finetune(&["retry", "1"]).status.success());
    let error = lab.failed(1);
    let now = lab.house.job(1).unwrap().job.plugins[0].library.sha256.clone();
    let [old, new] = [&paused.plugins[0].library.sha256, &now].map(|hash| hash.get(..12).unwrap().to_string());
    assert!(error.contains(&old) && error.contains(&new) && error.contains("--accept-plugin-change"), "{error}");
    // ... unless told.
    assert!(lab.finetune(&["retry", "1", "--accept-plugin-change"]).status.success());
    lab.house.wait_for_step(1, paused.progress.step + 1);
    let started = lab.house.events(1).into_iter().rfind(|row| row.kind == "started").unwrap();
    assert!(started.body["resumed_from"].as_u64().unwrap() > 0, "it went on from its checkpoint");
}

#[test]
fn hostile_plugins_fail_their_job_by_name_and_the_daemon_lives() {
    let mut lab = Lab::new(
        "[recipe.train]\nsteps = 2\nbatch_size = 2\nsequence_length = 128\nvalidation_fraction = 0.0\n[recipe.lora]\nrank = 2\n[plugins]\ncall_timeout = \"1s\"\ncall_memory = \"256MiB\"\n",
    );
    lab.install("hostile", "");
    lab.start();
    let mut id = 0;
    let mut fails = |lab: &Lab, plugin: &str, words: &str| {
        // Another build each time: one that has crashed twice would be refused.
        lab.install("hostile", plugin);
        let submitted = lab.submit(plugin, &[&format!("loss={plugin}")]);
        assert!(submitted.status.success(), "{}", String::from_utf8_lossy(&submitted.stderr));
        id += 1;
        let error = lab.failed(id);
        assert!(error.starts_with(&format!("plugin {plugin} 0.6.6, step 1, in evaluate: ")), "{plugin}: {error}");
        assert!(error.contains(words), "{plugin}: {error}");
        assert!(lab.finetune(&["status"]).status.success(), "the daemon answers");
        error
    };
    fails(&lab, "hostile-panic", "panicked: at the disco");
    fails(&lab, "hostile-nan", "dlogp of token 0 is NaN");
    fails(&lab, "hostile-wrong-length", "expected ");
    fails(&lab, "hostile-exit", "it ended the worker with exit status 0");
    fails(&lab, "hostile-hang", "did not return within 1.0 s");
    fails(&lab, "hostile-memory", "MiB of memory in one call");
    let first = fails(&lab, "hostile-segfault", "died of signal 11 (segmentation fault)");
    assert!(!first.contains("quarantine"), "{first}");

    // The second crash of the same build is its last.
    assert!(lab.finetune(&["retry", "7"]).status.success());
    let second = lab.failed(7);
    assert!(second.contains("it is in quarantine until its file changes"), "{second}");
    let refused = lab.submit("third", &["loss=hostile-segfault"]);
    assert!(!refused.status.success());
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(words.contains("in quarantine") && words.contains("step 1") && words.contains("rebuild"), "{words}");
    assert!(lab.says(&["plugin", "list"]).contains("in quarantine"));
    // Another build may be used at once.
    lab.install("hostile", "mended");
    assert!(!lab.says(&["plugin", "list"]).contains("in quarantine"));
    assert!(lab.submit("third", &["loss=hostile-nan"]).status.success());
    assert!(!lab.daemon_has_loaded_a_plugin());

    // The eighth claims to be built for another version of the door.
    let mut older = lab.command(env!("CARGO_BIN_EXE_finetune"));
    let older = older.env("HOSTILE_VERSION", "9").args(["plugin", "check"]).arg(built().join(library("hostile")));
    let older = older.output().unwrap();
    assert_eq!(older.status.code(), Some(1));
    let words = String::from_utf8_lossy(&older.stderr).into_owned();
    assert_eq!(words.trim().lines().count(), 1, "{words}");
    assert!(words.contains("was built for plugin ABI 9, this daemon speaks ABI 1; rebuild it"), "{words}");
    lab.house.kill_daemon();
    lab.install("hostile", "older");
    let mut command = lab.command(env!("CARGO_BIN_EXE_finetuned"));
    lab.house.start_with(command.env("HOSTILE_VERSION", "9"));
    let refused = lab.submit("fourth", &["loss=hostile-nan"]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(words.contains("was built for plugin ABI 9, this daemon speaks ABI 1"), "{words}");
}

/// Rows as people who compare answers write them down.
fn preferences(count: usize) -> String {
    (0..count)
        .map(|i| format!("{{\"prompt\": \"Is {i} a number?\", \"chosen\": \"Yes, {i} is one.\", \"rejected\": \"What a question.\"}}\n"))
        .collect()
}

#[test]
fn loss_dpo_and_a_preference_dataset_are_all_it_takes() {
    let mut lab = Lab::new(
        "[recipe.train]\nsteps = 12\nbatch_size = 4\nlearning_rate = 5e-3\nvalidation_fraction = 0.25\n[recipe.lora]\nrank = 4\n",
    );
    lab.start();
    let house = &lab.house;
    house.drop_file("taste.toml", "loss = \"dpo\"\n");
    house.drop_file("taste.jsonl", &preferences(24));
    let job = house.wait_for(1, State::Succeeded).job;
    let summary = job.summary.unwrap();
    // Where the run starts, policy and reference are one: the loss is ln 2.
    assert!((summary.tally.validation_before.unwrap() - std::f64::consts::LN_2).abs() < 1e-6);
    assert!((summary.tally.first_loss.unwrap() - std::f64::consts::LN_2).abs() < 1e-6);
    assert!(summary.validation_after < summary.tally.validation_before);
    let receipt = house.receipt("taste", "DONE");
    assert!(
        receipt.contains("accuracy  100% after (before: none") && receipt.contains("margin    0.000 before"),
        "{receipt}"
    );
    let report = String::from_utf8(read(&job.out.join("report.html"))).unwrap();
    assert!(report.contains("accuracy: share of the validation pairs") && report.contains("Preference accuracy"));
}

#[test]
fn plugins_are_listed_shown_checked_and_tested() {
    let lab = Lab::new(SHORT);
    lab.install("hard_tokens", "");
    lab.install("hostile", "");
    std::fs::write(lab.house.path("plugins").join(library("none")), "no library").unwrap();
    let list = lab.says(&["plugin", "list"]);
    assert!(list.contains("alignment  dpo") && list.contains("built in"), "{list}");
    assert!(list.contains("loss       hard-tokens          0.1.0"), "{list}");
    assert!(list.lines().any(|line| line.starts_with("refused") && line.contains("cannot be loaded")), "{list}");
    let json: serde_json::Value = serde_json::from_slice(&lab.finetune(&["plugin", "list", "--json"]).stdout).unwrap();
    let mine = json["plugins"].as_array().unwrap().iter().find(|row| row["name"] == "hard-tokens").unwrap();
    assert_eq!(mine["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(json["refused_files"].as_array().unwrap().len(), 1);

    let shown = lab.says(&["plugin", "show", "hard-tokens"]);
    assert!(shown.contains("lean = 1.0") && shown.contains("a number from 0 to 10"), "{shown}");
    let wrong = lab.finetune(&["plugin", "show", "hard-token"]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("did you mean 'hard-tokens'?"));

    let file = built().join(library("hard_tokens"));
    let file = file.to_str().unwrap();
    assert!(lab.says(&["plugin", "check", file]).contains("offers the loss hard-tokens 0.1.0"));
    let tests = lab.finetune(&["plugin", "test", "hard-tokens", "--json"]);
    let results: Vec<serde_json::Value> = serde_json::from_slice(&tests.stdout).unwrap();
    assert_eq!(results.len(), 9);
    // All but the time of a call, which a debug build on a busy machine may take.
    assert!(results.iter().all(|r| r["check"] == "speed" || r["failed"].is_null()), "{results:?}");

    let hostile = lab.finetune(&["plugin", "test", "hostile-segfault"]);
    assert_eq!(hostile.status.code(), Some(1));
    let words = String::from_utf8_lossy(&hostile.stdout).into_owned();
    assert!(words.contains("create         ok"), "{words}");
    assert!(words.contains("FAILED  the plugin ended its process: signal 11 (segmentation fault)"), "{words}");
}

#[test]
fn a_library_that_dies_or_hangs_while_it_is_loaded_is_refused_alone() {
    let lab = Lab::new(&format!("{SHORT}[plugins]\nload_timeout = \"1s\"\n"));
    lab.install("hard_tokens", "");
    for (name, body) in [("dies", "abort();"), ("hangs", "for (;;) pause();")] {
        let source = lab.house.path(&format!("{name}.c"));
        let text = format!(
            "#include <stdlib.h>\n#include <unistd.h>\n__attribute__((constructor)) static void f(void) {{ {body} }}\n"
        );
        std::fs::write(&source, text).unwrap();
        let into = lab.house.path("plugins").join(library(name));
        let built = Command::new("cc").args(["-shared", "-fPIC"]).arg(&source).arg("-o").arg(into).status().unwrap();
        assert!(built.success());
    }
    let list = lab.says(&["plugin", "list"]);
    assert!(list.contains("ended its process while it was loaded: signal 6 (abort)"), "{list}");
    assert!(list.contains("was not loaded within 1s (plugins.load_timeout)"), "{list}");
    assert!(list.contains("hard-tokens"), "{list}");
}

#[test]
fn the_daemon_answers_while_a_child_loads_a_slow_library() {
    let mut lab = Lab::new(&format!("{SHORT}[plugins]\nload_timeout = \"20s\"\n"));
    lab.install("hard_tokens", "");
    lab.start();
    let house = &lab.house;
    house.drop_file("a.toml", "loss = \"hard-tokens\"\n");
    house.drop_file("a.jsonl", &rows("a", 20));
    house.wait_for(1, State::Succeeded);

    // A library that says when it is being loaded, takes as long as it is told, and says
    // that nobody lost patience with it.
    let (begun, go, loaded) = (house.path("begun"), house.path("go"), house.path("loaded"));
    let source = house.path("slow.c");
    let body = format!(
        "close(creat(\"{}\", 0600)); while (access(\"{}\", F_OK)) usleep(1000); close(creat(\"{}\", 0600));",
        begun.display(),
        go.display(),
        loaded.display()
    );
    let text = format!(
        "#include <fcntl.h>\n#include <unistd.h>\n__attribute__((constructor)) static void f(void) {{ {body} }}\n"
    );
    std::fs::write(&source, text).unwrap();
    let into = house.path("plugins").join(library("slow"));
    assert!(Command::new("cc").args(["-shared", "-fPIC"]).arg(&source).arg("-o").arg(into).status().unwrap().success());

    // The recipe has changed, so that a retry asks what the libraries offer.
    house.drop_file("a.toml", "loss = \"hard-tokens\"\n[train]\nseed = 7\n");
    std::thread::scope(|scope| {
        let retry = scope.spawn(|| lab.finetune(&["retry", "1"]));
        house.wait("the library to be loaded", || begun.exists().then_some(()));
        assert_eq!(house.status().counts.values().sum::<u64>(), 1);
        assert_eq!(house.job(1).unwrap().job.state, State::Succeeded);
        assert!(!house.finetune(&["pause", "1"]).status.success(), "the supervisor answers as well");
        std::fs::write(&go, "").unwrap();
        let retried = retry.join().unwrap();
        let words = String::from_utf8_lossy(&retried.stdout).into_owned();
        assert!(words.contains("that is job 2"), "{words}{}", String::from_utf8_lossy(&retried.stderr));
        assert!(loaded.exists(), "what was asked was answered only when the child was given up");
    });
}

#[test]
fn a_new_plugin_is_a_folder_with_all_it_needs() {
    let lab = Lab::new(SHORT);
    let folder = lab.house.path("my-loss");
    let words = ["plugin", "new", "my-loss", "--kind", "loss", "--dir", folder.to_str().unwrap()];
    let made = lab.finetune(&words);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(String::from_utf8_lossy(&made.stdout).contains("finetune plugin test"));
    assert!(String::from_utf8(read(&folder.join("src/lib.rs"))).unwrap().contains("my-loss"));
    assert!(folder.join("finetuned-plugin-api/src/lib.rs").exists());
    let again = lab.finetune(&words);
    assert!(String::from_utf8_lossy(&again.stderr).contains("is not empty"), "nothing is overwritten");
    assert!(!lab.finetune(&["plugin", "new", "My Loss", "--kind", "loss"]).status.success());
}
