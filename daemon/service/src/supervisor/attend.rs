//! Attends to one worker from its start to its end.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use finetuned_engine::{ErrorKind, Event, TrainRequest};
use finetuned_plugin_api::abi::calls;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::config::{Config, WorkersConfig};
use crate::error::{Context, Error, Result};
use crate::filesystem::{Held, Lock, replace_file};
use crate::inbox::Receipts;
use crate::plugins;
use crate::protocol::{Ask, LOCK_FILE, LOG_FILE, Line, PluginLimits, REQUEST_FILE, RunRequest, WorkerLine};
use crate::store::{Change, Job, Progress, State, Store, StoreHandle};

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
    pub store: StoreHandle,
    pub receipts: Receipts,
    /// The program that has the `worker` command.
    pub program: PathBuf,
}

/// Runs `job` in a worker and returns the change of state that its end means. The
/// supervisor makes the change.
pub async fn attend(setup: Setup, job: Job, mut asks: mpsc::Receiver<Ask>) -> Change {
    match start(&setup, &job).await {
        Ok(child) => Attendant::new(setup, job).watch(child, &mut asks).await,
        Err(error) => Change::by_error(State::Failed, error.kind(), format!("no worker could be started: {error}")),
    }
}

async fn start(setup: &Setup, job: &Job) -> Result<Child> {
    // Jobs that waited while another died of the same build.
    let crashes = setup.store.read(|store| store.plugin_crashes()).await?;
    for plugin in &job.plugins {
        if let Some(why) = plugins::quarantine(&crashes, &plugin.name, &plugin.library) {
            return Err(Error::plugin(why));
        }
    }
    let folder = job_folder(&setup.config, job.id);
    let request = serde_json::to_string_pretty(&request(&setup.config, job))?;
    let patience = setup.config.workers.stop_timeout;
    let prepared = folder.clone();
    tokio::task::spawn_blocking(move || prepare(&prepared, &request, patience)).await??;
    let mut command = Command::new(&setup.program);
    command
        .arg("worker")
        .arg("--job")
        .arg(&folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C in the daemon's terminal must reach the daemon alone.
        .process_group(0)
        .kill_on_drop(true)
        .envs(crate::devices::runtime_dir(&setup.config.state_dir));
    command.spawn().with_context(|| format!("cannot start {}", setup.program.display()))
}

fn job_folder(config: &Config, job: i64) -> PathBuf {
    config.jobs_dir().join(job.to_string())
}

/// Writes the request into the job's folder, and waits for the worker of an earlier
/// daemon.
fn prepare(folder: &Path, request: &str, patience: Duration) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    replace_file(&folder.join(REQUEST_FILE), request.as_bytes())?;
    await_predecessor(&folder.join(LOCK_FILE), patience)
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
            device: config.workers.device.0.clone(),
            fresh: job.fresh,
            threads: config.workers.threads,
            plugins: plugins::libraries_of(&job.plugins),
            accept_plugin_change: job.accept_plugin_change,
        },
    }
}

/// A worker of a daemon that was killed ends by itself when its stdin does, with
/// a checkpoint. It is waited for; if it hangs, it is killed. The process id in the
/// file is right as long as the worker holds the lock.
fn await_predecessor(lock_file: &Path, patience: Duration) -> Result<()> {
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
        if begin.elapsed() >= patience + Duration::from_secs(30) {
            return Err(Error::conflict(format!("an earlier worker still holds {}", lock_file.display())));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

struct Attendant {
    setup: Setup,
    job: Job,
    log: Log,
    signs: Signs,
    wish: Wish,
    /// The worker's last line, once it has come.
    last: Option<WorkerLine>,
}

/// What has happened and is not written yet.
struct Log {
    progress: Progress,
    pending: Vec<Event>,
    receipt_at: Instant,
    /// The last lines of stderr.
    words: VecDeque<String>,
}

impl Log {
    fn overhear(&mut self, line: String) {
        self.words.push_back(line);
        if self.words.len() > LAST_WORDS {
            self.words.pop_front();
        }
    }
}

/// Signs of life.
struct Signs {
    /// When the worker was heard last.
    heard: Instant,
    /// When the engine made progress last.
    moved: Instant,
    engine_progress: u64,
}

impl Signs {
    /// Why a worker must be killed, if it shows too few.
    fn missing(&self, now: Instant, workers: &WorkersConfig) -> Option<String> {
        if now - self.heard > workers.heartbeat_timeout {
            return Some(format!("no heartbeat for {}", humantime::format_duration(workers.heartbeat_timeout)));
        }
        if now - self.moved <= workers.stall_timeout {
            return None;
        }
        // Work that a driver has swallowed never comes back by itself.
        let is_cpu = finetuned_engine::devices::is_cpu(&workers.device.0);
        let perhaps = if is_cpu { "" } else { ": the device or its driver may hang" };
        let limit = humantime::format_duration(workers.stall_timeout);
        Some(format!("no progress for {limit} (workers.stall_timeout){perhaps}"))
    }
}

/// What the worker was asked, and how long it has to obey.
#[derive(Default)]
struct Wish {
    asked: Option<Ask>,
    kill_at: Option<Instant>,
    killed_because: Option<String>,
}

impl Attendant {
    fn new(setup: Setup, job: Job) -> Attendant {
        let now = Instant::now();
        let progress = Progress { phase: Some("starting".into()), ..job.progress.clone() };
        Attendant {
            setup,
            job,
            log: Log { progress, pending: Vec::new(), receipt_at: now, words: VecDeque::new() },
            signs: Signs { heard: now, moved: now, engine_progress: 0 },
            wish: Wish::default(),
            last: None,
        }
    }

    async fn watch(mut self, mut child: Child, asks: &mut mpsc::Receiver<Ask>) -> Change {
        let mut stdin = child.stdin.take();
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Change::by_error(State::Failed, ErrorKind::Internal, "the worker has no output");
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
                    Ok(Some(line)) => self.hear(&line).await,
                    _ => out_open = false,
                },
                line = errors.next_segment(), if err_open => match line {
                    Ok(Some(line)) => self.overhear(&line, log.as_mut()),
                    _ => err_open = false,
                },
                ask = asks.recv() => self.ask(ask, &mut stdin, &mut child).await,
                _ = tick.tick() => {
                    self.flush().await;
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
        self.flush().await;
        let exit = exit_of(status, self.wish.killed_because.take());
        let words: Vec<String> = std::mem::take(&mut self.log.words).into_iter().collect();
        let call = self.last_call();
        let mut change = verdict(self.last.as_ref(), &exit, self.wish.asked, &words.join("\n"), call.as_deref());
        if change.to == State::Failed
            && self.last.is_none()
            && exit.killed_because.is_none()
            && let Some(call) = &call
        {
            let more = self.plugin_crashed(call, &change.why).await;
            change.why += &more;
        }
        change.why = self.in_the_users_names(change.why).await;
        change
    }

    /// The call of a plugin that the worker ended in.
    fn last_call(&self) -> Option<String> {
        let path = job_folder(&self.setup.config, self.job.id).join(plugins::CALL_FILE);
        calls::last_call(&path).unwrap_or_else(|error| {
            tracing::error!(job = self.job.id, "{error}");
            None
        })
    }

    /// Counts the end of a worker against the build it ended in. Says so if that is
    /// one too many.
    async fn plugin_crashed(&self, call: &str, why: &str) -> String {
        let named = |plugin: &&plugins::Pinned| call.starts_with(&format!("plugin {} {}", plugin.name, plugin.version));
        let Some(plugin) = self.job.plugins.iter().find(named).or(self.job.plugins.first()) else {
            return String::new();
        };
        let first_line = why.lines().next().unwrap_or_default().to_string();
        let (sha256, job) = (plugin.library.sha256.clone(), self.job.id);
        match self.setup.store.write(move |store| store.add_plugin_crash(&sha256, job, &first_line)).await {
            Ok(count) if count >= plugins::QUARANTINE_AFTER => format!(
                "\n{count} workers have died in this build of {}: it is in quarantine until its file changes",
                crate::filesystem::display(&plugin.library.origin)
            ),
            Ok(_) => String::new(),
            Err(error) => {
                tracing::error!(job = self.job.id, "the crash could not be written: {error}");
                String::new()
            }
        }
    }

    /// The engine read the snapshot; the user knows the file by another name.
    async fn in_the_users_names(&self, text: String) -> String {
        let id = self.job.id;
        let files = self.setup.store.read(move |store| store.files_of_job(id)).await;
        match files.ok().and_then(|files| files.into_iter().next()) {
            Some(file) => {
                text.replace(&self.job.data.display().to_string(), &file.inbox.join(&file.path).display().to_string())
            }
            None => text,
        }
    }

    async fn hear(&mut self, line: &str) {
        self.signs.heard = Instant::now();
        match serde_json::from_str(line) {
            Ok(Line::Worker { worker: WorkerLine::Heartbeat { progress } }) => {
                if progress != self.signs.engine_progress {
                    self.signs.engine_progress = progress;
                    self.signs.moved = self.signs.heard;
                }
            }
            Ok(Line::Worker { worker: WorkerLine::Hello { pid } }) => {
                tracing::debug!(job = self.job.id, "worker {pid}");
            }
            Ok(Line::Worker { worker }) => {
                if let WorkerLine::Done { summary } = &worker {
                    let summary = summary.clone();
                    self.written("the summary", move |store, id| store.set_summary(id, &summary)).await;
                }
                self.last = Some(worker);
            }
            Ok(Line::Engine(event)) => {
                self.signs.moved = self.signs.heard;
                self.happened(*event).await;
            }
            Err(error) => tracing::warn!(job = self.job.id, "the worker said {line:?}: {error}"),
        }
    }

    async fn happened(&mut self, event: Event) {
        self.log.progress.apply(&event);
        match &event {
            // Too many, and the step's own line follows.
            Event::Progress { .. } => return,
            Event::Prepared { report } => {
                let report = report.clone();
                self.written("the dataset's report", move |store, id| store.set_report(id, &report)).await;
            }
            Event::Started { .. } => self.written("the start", |store, id| store.begin(id)).await,
            _ => {}
        }
        let is_step = matches!(event, Event::Step(_));
        self.log.pending.push(event);
        if !is_step {
            self.flush().await;
            self.refresh_receipt();
        }
    }

    /// Writes to the store. A failure is told, and training goes on: the run's own
    /// files are the truth.
    async fn written(&self, what: &str, write: impl FnOnce(&mut Store, i64) -> Result<()> + Send + 'static) {
        let id = self.job.id;
        if let Err(error) = self.setup.store.write(move |store| write(store, id)).await {
            tracing::error!(job = id, "{what} could not be written: {error}");
        }
    }

    async fn flush(&mut self) {
        if self.log.pending.is_empty() {
            return;
        }
        let pending = std::mem::take(&mut self.log.pending);
        let progress = self.log.progress.clone();
        self.written("progress", move |store, id| store.record(id, &progress, &pending)).await;
    }

    fn refresh_receipt(&mut self) {
        self.log.receipt_at = Instant::now();
        self.setup.receipts.refresh(self.job.id);
    }

    fn overhear(&mut self, line: &[u8], log: Option<&mut std::fs::File>) {
        let line = String::from_utf8_lossy(line).into_owned();
        if let Some(log) = log {
            use std::io::Write;
            let _ = writeln!(log, "{line}");
        }
        tracing::debug!(job = self.job.id, "worker: {line}");
        self.log.overhear(line.chars().take(500).collect());
    }

    /// Passes a wish on. The second of two equal ones is impatience: killed.
    async fn ask(&mut self, ask: Option<Ask>, stdin: &mut Option<ChildStdin>, child: &mut Child) {
        let ask = ask.unwrap_or(Ask::Stop);
        if self.wish.asked == Some(ask) {
            self.kill("it was told so twice", child);
            return;
        }
        // A cancel overrules a pause; a pause or a stop does not undo a cancel.
        if self.wish.asked != Some(Ask::Cancel) {
            self.wish.asked = Some(ask);
            let patience = if ask == Ask::Cancel { CANCEL_TIMEOUT } else { self.setup.config.workers.stop_timeout };
            self.wish.kill_at = Some(Instant::now() + patience);
            if let Some(stdin) = stdin {
                let _ = stdin.write_all(format!("{}\n", ask.order().line()).as_bytes()).await;
                let _ = stdin.flush().await;
            }
        }
    }

    fn check(&mut self, child: &mut Child) {
        let now = Instant::now();
        let reason = if self.wish.kill_at.is_some_and(|at| now >= at) {
            Some("it did not stop in time".to_string())
        } else {
            self.signs.missing(now, &self.setup.config.workers)
        };
        if let Some(reason) = reason {
            self.kill(&reason, child);
        }
        if now - self.log.receipt_at > RECEIPT_EVERY {
            self.refresh_receipt();
        }
    }

    fn kill(&mut self, reason: &str, child: &mut Child) {
        if self.wish.killed_because.is_none() {
            tracing::warn!(job = self.job.id, "the worker is killed: {reason}");
            self.wish.killed_because = Some(reason.to_string());
        }
        let _ = child.start_kill();
    }
}

fn open_log(config: &Config, job: i64) -> Option<std::fs::File> {
    std::fs::File::options().create(true).append(true).open(job_folder(config, job).join(LOG_FILE)).ok()
}

fn exit_of(status: std::io::Result<std::process::ExitStatus>, killed_because: Option<String>) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    match status {
        Ok(status) => Exit { code: status.code(), signal: status.signal(), killed_because },
        Err(_) => Exit { killed_because, ..Exit::default() },
    }
}
