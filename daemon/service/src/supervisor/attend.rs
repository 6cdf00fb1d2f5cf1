//! Attends to one worker from its start to its end.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use finetuned_engine::{Event, TrainRequest};
use finetuned_plugin_api::abi::calls;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::config::Config;
use crate::filesystem::{Held, Lock};
use crate::inbox::receipt;
use crate::lock::lock;
use crate::plugins::{self, Pinned};
use crate::store::{Job, Progress, State, Store};

use super::protocol::{self, Ask, LOCK_FILE, LOG_FILE, Line, PluginLimits, REQUEST_FILE, RunRequest, WorkerLine};
use super::verdict::{Exit, verdict};

/// How long steps may wait before they are written down together.
const FLUSH_EVERY: Duration = Duration::from_millis(300);
/// How often the receipt of a running job is brought up to date.
const RECEIPT_EVERY: Duration = Duration::from_secs(10);
/// Lines of stderr that are kept for the error.
const LAST_WORDS: usize = 12;
/// A cancelled worker has nothing to save.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

/// What a worker is started with.
#[derive(Clone)]
pub struct Setup {
    pub config: Arc<Config>,
    pub store: Arc<Mutex<Store>>,
    /// Told after everything that is written to the store.
    pub news: watch::Sender<u64>,
    /// The program that has the `worker` command.
    pub program: PathBuf,
}

/// Runs `job` in a worker and returns the state it ends in, and why. The
/// transition itself is the supervisor's.
pub async fn attend(setup: Setup, job: Job, mut asks: mpsc::Receiver<Ask>) -> (State, String) {
    match start(&setup, &job).await {
        Ok(child) => Attendant::new(setup, job).watch(child, &mut asks).await,
        Err(error) => (State::Failed, format!("no worker could be started: {error:#}")),
    }
}

async fn start(setup: &Setup, job: &Job) -> anyhow::Result<Child> {
    // Jobs that waited while another died of the same build.
    let crashes = lock(&setup.store).plugin_crashes()?;
    for plugin in &job.plugins {
        if let Some(why) = plugins::quarantine(&crashes, &plugin.name, &plugin.library) {
            anyhow::bail!(why);
        }
    }
    let folder = setup.config.jobs_dir().join(job.id.to_string());
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let request = request(&setup.config, job);
    crate::filesystem::replace_file(&folder.join(REQUEST_FILE), serde_json::to_string_pretty(&request)?.as_bytes())?;
    let lock_file = folder.join(LOCK_FILE);
    let patience = setup.config.workers.stop_timeout;
    tokio::task::spawn_blocking(move || await_predecessor(&lock_file, patience)).await??;
    let mut command = Command::new(&setup.program);
    command
        .arg("worker")
        .arg("--job")
        .arg(&folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C in the daemon's terminal is the daemon's to handle.
        .process_group(0)
        .kill_on_drop(true)
        .envs(crate::devices::runtime_dir(&setup.config.state_dir));
    command.spawn().with_context(|| format!("cannot start {}", setup.program.display()))
}

fn request(config: &Config, job: &Job) -> RunRequest {
    let in_place = !job.data.starts_with(config.datasets_dir());
    RunRequest {
        models_dir: config.models_dir.clone(),
        devices_file: Some(config.state_dir.join(crate::devices::FILE)),
        verify_sha256: in_place.then(|| job.data_sha256.clone()),
        memory_bytes: config.workers.memory,
        plugin_limits: Some(PluginLimits::of(&config.plugins)),
        train: TrainRequest {
            data: job.data.clone(),
            validation: job.validation.clone(),
            adapter: job.adapter.clone(),
            out: job.out.clone(),
            recipe: job.recipe.clone(),
            device: config.workers.device.clone(),
            fresh: job.fresh,
            threads: config.workers.threads,
            plugins: plugins::libraries_of(&job.plugins),
            accept_plugin_change: job.accept_plugin_change,
        },
    }
}

/// A worker of a daemon that was killed ends by itself when its stdin does, with
/// a checkpoint. It is waited for; if it hangs, it is killed. The process id is
/// its own as long as it holds the lock.
fn await_predecessor(lock_file: &Path, patience: Duration) -> anyhow::Result<()> {
    let begin = std::time::Instant::now();
    let mut killed = false;
    loop {
        let Err(Held { by }) = Lock::take(lock_file)? else { return Ok(()) };
        if begin.elapsed() > patience && !killed {
            killed = true;
            if let Some(pid) = by.and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
                tracing::warn!("the worker {} of an earlier daemon does not end: it is killed", pid.as_raw_nonzero());
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        anyhow::ensure!(
            begin.elapsed() < patience + Duration::from_secs(30),
            "an earlier worker still holds {}",
            lock_file.display()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

struct Attendant {
    setup: Setup,
    job: Job,
    progress: Progress,
    pending: Vec<(String, serde_json::Value)>,
    last: Option<WorkerLine>,
    asked: Option<Ask>,
    kill_at: Option<Instant>,
    killed_because: Option<String>,
    heard: Instant,
    moved: Instant,
    engine_progress: u64,
    receipt_at: Instant,
    words: std::collections::VecDeque<String>,
}

impl Attendant {
    fn new(setup: Setup, job: Job) -> Attendant {
        let now = Instant::now();
        Attendant {
            progress: Progress { phase: Some("starting".into()), ..job.progress.clone() },
            setup,
            job,
            pending: Vec::new(),
            last: None,
            asked: None,
            kill_at: None,
            killed_because: None,
            heard: now,
            moved: now,
            engine_progress: 0,
            receipt_at: now,
            words: std::collections::VecDeque::new(),
        }
    }

    async fn watch(mut self, mut child: Child, asks: &mut mpsc::Receiver<Ask>) -> (State, String) {
        let mut stdin = child.stdin.take();
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return (State::Failed, "the worker has no output".into());
        };
        let mut lines = BufReader::new(stdout).lines();
        let mut errors = BufReader::new(stderr).split(b'\n');
        let mut log = open_log(&self.setup.config, self.job.id);
        let mut tick = tokio::time::interval(FLUSH_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut out_open, mut err_open) = (true, true);
        while out_open || err_open {
            tokio::select! {
                line = lines.next_line(), if out_open => match line {
                    Ok(Some(line)) => self.hear(&line),
                    _ => out_open = false,
                },
                line = errors.next_segment(), if err_open => match line {
                    Ok(Some(line)) => self.overhear(&line, log.as_mut()),
                    _ => err_open = false,
                },
                ask = asks.recv() => self.ask(ask, &mut stdin, &mut child).await,
                _ = tick.tick() => {
                    self.flush();
                    self.check(&mut child);
                }
            }
        }
        // Both pipes are closed: the process is ending. One that closed them
        // and lives on is killed.
        let status = match tokio::time::timeout(Duration::from_secs(10), child.wait()).await {
            Ok(status) => status,
            Err(_) => {
                let _ = child.start_kill();
                child.wait().await
            }
        };
        self.flush();
        let exit = exit_of(status, self.killed_because.take());
        let words: Vec<String> = std::mem::take(&mut self.words).into_iter().collect();
        let call = self.last_call();
        let (state, mut why) = verdict(self.last.as_ref(), &exit, self.asked, &words.join("\n"), call.as_deref());
        if state == State::Failed
            && self.last.is_none()
            && exit.killed_because.is_none()
            && let Some(call) = &call
        {
            why += &self.plugin_crashed(call, &why);
        }
        (state, self.in_the_users_names(why))
    }

    /// The call of a plugin that the worker ended in.
    fn last_call(&self) -> Option<String> {
        let path = self.setup.config.jobs_dir().join(self.job.id.to_string()).join(plugins::CALL_FILE);
        calls::last_call(&path).unwrap_or_else(|error| {
            tracing::error!(job = self.job.id, "{error}");
            None
        })
    }

    /// Counts the end of a worker against the build it ended in; says so where
    /// that is one too many.
    fn plugin_crashed(&self, call: &str, why: &str) -> String {
        let named = |plugin: &&Pinned| call.starts_with(&format!("plugin {} {}", plugin.name, plugin.version));
        let Some(plugin) = self.job.plugins.iter().find(named).or(self.job.plugins.first()) else {
            return String::new();
        };
        let first_line = why.lines().next().unwrap_or_default();
        match lock(&self.setup.store).add_plugin_crash(&plugin.library.sha256, self.job.id, first_line) {
            Ok(count) if count >= plugins::QUARANTINE_AFTER => format!(
                "\n{count} workers have died in this build of {}: it is in quarantine until its file changes",
                crate::filesystem::display(&plugin.library.origin)
            ),
            Ok(_) => String::new(),
            Err(error) => {
                tracing::error!(job = self.job.id, "the crash could not be written: {error:#}");
                String::new()
            }
        }
    }

    /// The engine read the snapshot; the user knows the file by its own name.
    fn in_the_users_names(&self, text: String) -> String {
        let file = lock(&self.setup.store).files_of_job(self.job.id).ok().and_then(|files| files.into_iter().next());
        match file {
            Some(file) => {
                text.replace(&self.job.data.display().to_string(), &file.inbox.join(&file.path).display().to_string())
            }
            None => text,
        }
    }

    fn hear(&mut self, line: &str) {
        self.heard = Instant::now();
        match protocol::parse(line) {
            Ok(Line::Worker(WorkerLine::Heartbeat { progress })) => {
                if progress != self.engine_progress {
                    self.engine_progress = progress;
                    self.moved = self.heard;
                }
            }
            Ok(Line::Worker(WorkerLine::Hello { pid })) => tracing::debug!(job = self.job.id, "worker {pid}"),
            Ok(Line::Worker(last)) => {
                if let WorkerLine::Done { summary } = &last {
                    self.written("the summary", |store, id| store.set_summary(id, summary));
                }
                self.last = Some(last);
            }
            Ok(Line::Engine(event)) => {
                self.moved = self.heard;
                self.happened(&event, line);
            }
            Err(error) => tracing::warn!(job = self.job.id, "the worker said {line:?}: {error}"),
        }
    }

    fn happened(&mut self, event: &Event, line: &str) {
        self.progress.apply(event);
        match event {
            // Too many, and the step's own line follows.
            Event::Progress { .. } => return,
            Event::Prepared { report } => {
                self.written("the dataset's report", |store, id| store.set_report(id, report))
            }
            Event::Started { .. } => {
                self.written("the start", |store, id| {
                    store.set_fresh(id, false)?;
                    store.set_accept_plugin_change(id, false)?;
                    store.transition(id, State::Running, "training").map(|_| ())
                });
            }
            _ => {}
        }
        if let Ok(mut body) = serde_json::from_str::<serde_json::Value>(line) {
            let kind = body.as_object_mut().and_then(|map| map.shift_remove("event"));
            let kind = kind.and_then(|kind| kind.as_str().map(str::to_string)).unwrap_or_else(|| "event".into());
            self.pending.push((kind, body));
        }
        if !matches!(event, Event::Step(_)) {
            self.flush();
            self.rewrite_receipt();
        }
    }

    /// Writes to the store; what cannot be written is told, and training goes
    /// on: the run's own files are the truth.
    fn written(&self, what: &str, write: impl FnOnce(&mut Store, i64) -> anyhow::Result<()>) {
        if let Err(error) = write(&mut lock(&self.setup.store), self.job.id) {
            tracing::error!(job = self.job.id, "{what} could not be written: {error:#}");
        }
    }

    fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let pending = std::mem::take(&mut self.pending);
        self.written("progress", |store, id| store.record(id, &self.progress, &pending));
        self.setup.news.send_modify(|count| *count += 1);
    }

    fn rewrite_receipt(&mut self) {
        self.receipt_at = Instant::now();
        let store = lock(&self.setup.store);
        match store.job(self.job.id) {
            Ok(Some(job)) => receipt::rewrite(&store, &job),
            Ok(None) => {}
            Err(error) => tracing::error!(job = self.job.id, "{error:#}"),
        }
    }

    fn overhear(&mut self, line: &[u8], log: Option<&mut std::fs::File>) {
        let line = String::from_utf8_lossy(line).into_owned();
        if let Some(log) = log {
            use std::io::Write;
            let _ = writeln!(log, "{line}");
        }
        tracing::debug!(job = self.job.id, "worker: {line}");
        self.words.push_back(line.chars().take(500).collect());
        if self.words.len() > LAST_WORDS {
            self.words.pop_front();
        }
    }

    /// Passes a wish on. The second of two equal ones is impatience: killed.
    async fn ask(&mut self, ask: Option<Ask>, stdin: &mut Option<ChildStdin>, child: &mut Child) {
        let ask = ask.unwrap_or(Ask::Stop);
        if self.asked == Some(ask) {
            self.kill("it was told so twice", child);
            return;
        }
        // A cancel overrules a pause; a pause or a stop does not undo a cancel.
        if self.asked != Some(Ask::Cancel) {
            self.asked = Some(ask);
            let patience = if ask == Ask::Cancel { CANCEL_TIMEOUT } else { self.setup.config.workers.stop_timeout };
            self.kill_at = Some(Instant::now() + patience);
            if let Some(stdin) = stdin {
                let _ = stdin.write_all(ask.word().as_bytes()).await;
                let _ = stdin.flush().await;
            }
        }
    }

    fn check(&mut self, child: &mut Child) {
        let now = Instant::now();
        let workers = &self.setup.config.workers;
        let reason = if self.kill_at.is_some_and(|at| now >= at) {
            Some("it did not stop in time".to_string())
        } else if now - self.heard > workers.heartbeat_timeout {
            Some(format!("no heartbeat for {}", humantime::format_duration(workers.heartbeat_timeout)))
        } else if now - self.moved > workers.stall_timeout {
            // Work that a driver has swallowed never comes back by itself.
            let perhaps = if workers.device == "cpu" { "" } else { ": the device or its driver may hang" };
            let limit = humantime::format_duration(workers.stall_timeout);
            Some(format!("no progress for {limit} (workers.stall_timeout){perhaps}"))
        } else {
            None
        };
        if let Some(reason) = reason {
            self.kill(&reason, child);
        }
        if now - self.receipt_at > RECEIPT_EVERY {
            self.rewrite_receipt();
        }
    }

    fn kill(&mut self, reason: &str, child: &mut Child) {
        if self.killed_because.is_none() {
            tracing::warn!(job = self.job.id, "the worker is killed: {reason}");
            self.killed_because = Some(reason.to_string());
        }
        let _ = child.start_kill();
    }
}

fn open_log(config: &Config, job: i64) -> Option<std::fs::File> {
    let path = config.jobs_dir().join(job.to_string()).join(LOG_FILE);
    std::fs::File::options().create(true).append(true).open(path).ok()
}

fn exit_of(status: std::io::Result<std::process::ExitStatus>, killed_because: Option<String>) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    match status {
        Ok(status) => Exit { code: status.code(), signal: status.signal(), killed_because },
        Err(_) => Exit { killed_because, ..Exit::default() },
    }
}
