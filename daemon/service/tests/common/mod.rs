//! A house for the tests: a temporary folder, a tiny model, the real programs.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use finetuned_service::api::{self, EventsQuery, JobView, Status, StatusQuery};
use finetuned_service::http::client::Client;
use finetuned_service::store::{EventRow, State};

/// A complete model of 2 layers, hidden 64, made by the engine's golden script.
pub const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../engine/tests/golden/llama");

const PATIENCE: Duration = Duration::from_secs(120);

/// A package's library by its file name.
pub fn library(name: &str) -> String {
    format!("{}{name}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX)
}

/// Builds libraries of the workspace that tests load, and gives their folder.
pub fn build(packages: &[&str]) -> PathBuf {
    // The target folder of this very test, so that dependencies are there.
    let profile = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_path_buf();
    let release = profile.ends_with("release");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--offline", "--quiet"])
        .args(packages.iter().flat_map(|package| ["-p", package]))
        .arg("--target-dir")
        .arg(profile.parent().unwrap())
        .args(release.then_some("--release"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    profile
}

pub struct House {
    /// How long a test waits for something, at most.
    pub patience: Duration,
    dir: tempfile::TempDir,
    pub daemon: Option<Child>,
}

impl House {
    /// A state folder whose recipe trains the tiny model; `recipe` goes on top.
    pub fn new(recipe: &str) -> House {
        let house = House { patience: PATIENCE, dir: tempfile::tempdir().unwrap(), daemon: None };
        house.configure(&format!(
            "state_dir = \".\"\n[inbox]\nsettle = \"200ms\"\nscan_every = \"1s\"\n[workers]\nthreads = 1\ndevice = \"cpu\"\n[recipe]\nbase = \"{MODEL}\"\n{recipe}"
        ));
        std::fs::create_dir_all(house.path("inbox")).unwrap();
        house
    }

    pub fn configure(&self, text: &str) {
        std::fs::write(self.config(), text).unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.path("finetuned.toml")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The daemon's own program, in an environment without this machine's keys.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FINETUNED_") || name == "NOTIFY_SOCKET" {
                command.env_remove(name);
            }
        }
        command.arg("--config").arg(self.config());
        command
    }

    pub fn start(&mut self) {
        let mut command = self.command(env!("CARGO_BIN_EXE_finetuned"));
        self.start_with(&mut command);
    }

    pub fn start_with(&mut self, command: &mut Command) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("daemon.log")).unwrap();
        self.daemon = Some(command.stdin(Stdio::null()).stderr(log).spawn().unwrap());
        let client = self.client();
        self.wait("the daemon to answer", || client.ask(&api::HEALTH, &(), &()).ok());
    }

    pub fn client(&self) -> Client {
        Client::new(&self.path("finetuned.sock")).unwrap()
    }

    /// `finetune` with these words.
    pub fn finetune(&self, words: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_finetune")).args(words).output().unwrap()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.daemon.as_ref().unwrap().id();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
    }

    /// Waits for the daemon to end and gives its exit code.
    pub fn end(&mut self) -> Option<i32> {
        let mut child = self.daemon.take().unwrap();
        let begin = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            if begin.elapsed() > self.patience {
                let _ = child.kill();
                panic!("the daemon does not end\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn kill_daemon(&mut self) {
        let mut child = self.daemon.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }

    pub fn wait<T>(&self, what: &str, mut check: impl FnMut() -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(found) = check() {
                return found;
            }
            assert!(begin.elapsed() < self.patience, "waited in vain for {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn job(&self, id: i64) -> Option<JobView> {
        self.client().ask_of(&api::JOB, id, &(), &()).ok()
    }

    pub fn wait_for(&self, id: i64, state: State) -> JobView {
        self.wait(&format!("job {id} to be {state}"), || {
            let view = self.job(id)?;
            let wrong = view.job.state.is_ended() && view.job.state != state;
            assert!(!wrong, "job {id} is {}: {:?}\n{}", view.job.state, view.job.error, self.log());
            (view.job.state == state).then_some(view)
        })
    }

    pub fn wait_for_step(&self, id: i64, step: usize) {
        self.wait(&format!("step {step} of job {id}"), || {
            let view = self.job(id)?;
            assert!(!view.job.state.is_ended(), "job {id} ended too soon: {:?}", view.job.error);
            (view.job.progress.step >= step).then_some(())
        });
    }

    pub fn status(&self) -> Status {
        self.client().ask(&api::STATUS, &StatusQuery::default(), &()).unwrap()
    }

    pub fn events(&self, id: i64) -> Vec<EventRow> {
        let mut all = Vec::new();
        loop {
            let after = all.last().map_or(0, |row: &EventRow| row.id);
            let query = EventsQuery { after, ..EventsQuery::default() };
            let rows = self.client().ask_of(&api::JOB_EVENTS, id, &query, &()).unwrap();
            if rows.is_empty() {
                return all;
            }
            all.extend(rows);
        }
    }

    pub fn drop_file(&self, name: &str, content: &str) {
        let path = self.path("inbox").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let aside = path.with_file_name(".copying");
        std::fs::write(&aside, content).unwrap();
        std::fs::rename(aside, path).unwrap();
    }

    /// A receipt as soon as it says `word`.
    pub fn receipt(&self, name: &str, word: &str) -> String {
        let path = self.path("inbox/_receipts").join(format!("{name}.txt"));
        self.wait(&format!("the receipt {name} to say {word}"), || {
            std::fs::read_to_string(&path).ok().filter(|text| text.contains(word))
        })
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// `rows` chat rows in the words of `topic`.
pub fn rows(topic: &str, rows: usize) -> String {
    (0..rows)
        .map(|i| {
            format!(
                "{{\"messages\":[{{\"role\":\"user\",\"content\":\"{topic} {i}\"}},{{\"role\":\"assistant\",\"content\":\"the answer to {topic} {i}\"}}]}}\n"
            )
        })
        .collect()
}

pub fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
