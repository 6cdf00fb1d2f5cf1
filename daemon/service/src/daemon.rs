//! The daemon: the inbox's thread, the supervisor, the control interface and the
//! signals, put together.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use finetuned_engine::recipe::{self, Recipe};

use crate::config::{Config, Sources};
use crate::exit;
use crate::filesystem::Lock;
use crate::http::messages::{DaemonStatus, Status, Submission};
use crate::http::server;
use crate::inbox::watch::Watch;
use crate::inbox::{Claims, Inbox, InboxStatus, receipt, recipe as inbox_recipe, snapshot};
use crate::lock::lock;
use crate::logging::{self, Level};
use crate::plugins::{Finder, own_program};
use crate::service_manager::ServiceManager;
use crate::store::{EventRow, Job, NewJob, Store};
use crate::supervisor::{Command, Supervisor};

/// Held as long as the daemon lives.
const LOCK_FILE: &str = "finetuned.lock";
/// Changes that come together are scanned together.
const COALESCE: Duration = Duration::from_millis(250);

/// Runs the daemon until it is told to stop.
pub fn main(sources: &Sources) -> ExitCode {
    match run(sources) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report("finetuned", &error),
    }
}

fn run(sources: &Sources) -> anyhow::Result<()> {
    let config = Arc::new(Config::load(sources)?);
    let level = logging::start(config.log_level.into());
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let state = |error: anyhow::Error| exit::coded(exit::STATE, format!("{error:#}"));
    let _lock = take_state(&config).map_err(state)?;
    let store = Store::open(&config.database()).map_err(state)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(sources.clone(), config, store, level))
}

/// Makes the state folder and takes its lock: one daemon a folder.
fn take_state(config: &Config) -> anyhow::Result<Lock> {
    for folder in [&config.state_dir, &config.jobs_dir(), &config.adapters_dir(), &config.datasets_dir()] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    for inbox in &config.inbox.paths {
        // An inbox elsewhere may be a disk that is not mounted: it is not made.
        if inbox.starts_with(&config.state_dir) {
            std::fs::create_dir_all(inbox).with_context(|| format!("cannot make {}", inbox.display()))?;
        }
    }
    Lock::take(&config.state_dir.join(LOCK_FILE))?.map_err(|held| {
        let holder = held.by.map_or("another process".to_string(), |pid| format!("process {pid}"));
        anyhow::anyhow!("{} is in use by {holder}; stop it, or set another state_dir", config.state_dir.display())
    })
}

async fn serve(sources: Sources, config: Arc<Config>, mut store: Store, level: Level) -> anyhow::Result<()> {
    let manager = ServiceManager::of_process();
    let mut signals = Signals::new()?;
    for job in store.requeue_active("the daemon was restarted; the job goes on from its last checkpoint")? {
        tracing::info!(job = job.id, "job {} goes on", job.id);
    }
    receipt::refresh_all(&store)?;
    let store = Arc::new(Mutex::new(store));
    let (news, _) = watch::channel(0_u64);
    let (commands, command_receiver) = mpsc::channel(64);
    let (inbox_sender, inbox_receiver) = std_mpsc::channel();
    let control = Arc::new(Control {
        sources,
        config: Mutex::new(config.clone()),
        store: store.clone(),
        commands,
        news: news.clone(),
        inbox: inbox_sender.clone(),
        inbox_statuses: Mutex::default(),
        level,
        started: Instant::now(),
        stopping: AtomicBool::new(false),
        stopped: AtomicBool::new(false),
    });

    let inbox_thread = {
        let control = control.clone();
        let inbox = Inbox::new(Claims::of(&config), store.clone());
        std::thread::Builder::new()
            .name("inbox".into())
            .spawn(move || watch_inboxes(&control, inbox, &inbox_receiver))?
    };
    let wake_inbox = inbox_sender.clone();
    let ended = Box::new(move || {
        let _ = wake_inbox.send(InboxMessage::Wake);
    });
    let supervisor = Supervisor::new(config.clone(), store, news, own_program()?, ended);
    let mut supervisor = tokio::spawn(supervisor.run(command_receiver));
    let listener = server::bind(&config.socket)?;
    let server = tokio::spawn(axum::serve(listener, server::router(control.clone())).into_future());

    manager.ready();
    tracing::info!("state in {}, control at {}", config.state_dir.display(), config.socket.display());
    for inbox in &config.inbox.paths {
        tracing::info!("inbox {}", inbox.display());
    }

    let mut alive = tokio::time::interval(
        manager.alive_every().unwrap_or(Duration::from_secs(3600)).max(Duration::from_millis(100)),
    );
    let mut status = tokio::time::interval(Duration::from_secs(2));
    loop {
        tokio::select! {
            _ = &mut supervisor => break,
            event = signals.next() => match event {
                Signal::Reload => match control.reload().await {
                    Ok(_) => tracing::info!("the configuration was read again"),
                    Err(error) => tracing::error!("the configuration stays as it was: {error:#}"),
                },
                signal => {
                    tracing::info!("stopping: each worker ends its step and writes a checkpoint");
                    control.stopping.store(true, Ordering::Relaxed);
                    manager.stopping();
                    manager.extend(control.config().workers.stop_timeout + Duration::from_secs(10));
                    control.tell(Command::Shutdown).await;
                    if signal == Signal::Quit {
                        control.tell(Command::Shutdown).await;
                    }
                }
            },
            _ = alive.tick() => manager.alive(),
            _ = status.tick() => manager.status(&control.status_line()),
        }
    }
    control.stopped.store(true, Ordering::Relaxed);
    let _ = inbox_sender.send(InboxMessage::Stop);
    server.abort();
    let _ = std::fs::remove_file(&config.socket);
    // A scan that copies a large file is not waited for: it decides nothing
    // half.
    if inbox_thread.is_finished() {
        let _ = inbox_thread.join();
    }
    tracing::info!("stopped");
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    Stop,
    Quit,
    Reload,
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    quit: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Stop,
            _ = self.interrupt.recv() => Signal::Stop,
            _ = self.quit.recv() => Signal::Quit,
            _ = self.hangup.recv() => Signal::Reload,
        }
    }
}

enum InboxMessage {
    Wake,
    Reconfigure(Box<Claims>),
    Stop,
}

/// The inbox's thread: scans at once, when woken, and every `scan_every`.
fn watch_inboxes(control: &Control, mut inbox: Inbox, messages: &std_mpsc::Receiver<InboxMessage>) {
    let begin = Instant::now();
    let mut watches: Vec<(PathBuf, Watch)> = Vec::new();
    loop {
        let every = control.config().inbox.scan_every;
        watches.retain(|(path, _)| inbox.paths().contains(path));
        for path in inbox.paths() {
            if !watches.iter().any(|(known, _)| known == path) {
                watches.push((path.clone(), Watch::new(path, every)));
            }
        }
        let sender = control.inbox.clone();
        let wake = move || {
            let _ = sender.send(InboxMessage::Wake);
        };
        for (_, watch) in &mut watches {
            watch.rearm(&wake);
        }
        let scan = inbox.scan(begin.elapsed());
        let new = !scan.new_jobs.is_empty();
        *lock(&control.inbox_statuses) = scan.statuses;
        if new {
            let _ = control.commands.blocking_send(Command::Wake);
        }
        control.news.send_modify(|count| *count += 1);
        let wait = scan.again_in.map_or(every, |again| again.min(every));
        let mut message = match messages.recv_timeout(wait) {
            Ok(message) => Some(message),
            Err(std_mpsc::RecvTimeoutError::Timeout) => None,
            Err(std_mpsc::RecvTimeoutError::Disconnected) => return,
        };
        if matches!(message, Some(InboxMessage::Wake)) {
            std::thread::sleep(COALESCE);
        }
        while let Some(received) = message {
            match received {
                InboxMessage::Wake => {}
                InboxMessage::Reconfigure(claims) => inbox.reconfigure(*claims),
                InboxMessage::Stop => return,
            }
            message = messages.try_recv().ok();
        }
    }
}

/// What the control interface works on.
pub struct Control {
    sources: Sources,
    config: Mutex<Arc<Config>>,
    store: Arc<Mutex<Store>>,
    commands: mpsc::Sender<Command>,
    news: watch::Sender<u64>,
    inbox: std_mpsc::Sender<InboxMessage>,
    inbox_statuses: Mutex<Vec<InboxStatus>>,
    level: Level,
    started: Instant,
    stopping: AtomicBool,
    stopped: AtomicBool,
}

impl Control {
    pub fn config(&self) -> Arc<Config> {
        lock(&self.config).clone()
    }

    pub async fn tell(&self, command: Command) {
        let _ = self.commands.send(command).await;
    }

    /// Changes after every write to the store.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// # Errors
    /// There is no such job.
    pub fn job(&self, id: i64) -> anyhow::Result<Job> {
        lock(&self.store).job(id)?.with_context(|| format!("there is no job {id}"))
    }

    /// # Errors
    /// The database.
    pub fn events(&self, job: Option<i64>, after: i64, limit: usize) -> anyhow::Result<Vec<EventRow>> {
        lock(&self.store).events(job, after, limit)
    }

    /// # Errors
    /// The database.
    pub fn status(&self) -> anyhow::Result<Status> {
        let config = self.config();
        Ok(Status {
            daemon: DaemonStatus {
                version: env!("CARGO_PKG_VERSION").into(),
                pid: std::process::id(),
                uptime_seconds: self.started.elapsed().as_secs_f64(),
                state_dir: config.state_dir.clone(),
                config_file: config.file.clone(),
                stopping: self.is_stopping(),
            },
            inboxes: lock(&self.inbox_statuses).clone(),
            jobs: lock(&self.store).jobs()?.into_iter().map(Into::into).collect(),
        })
    }

    /// One line for `systemctl status`.
    fn status_line(&self) -> String {
        let Ok(jobs) = lock(&self.store).jobs() else { return "the database does not answer".into() };
        let waiting = jobs.iter().filter(|job| job.state == crate::store::State::Queued).count();
        let active: Vec<String> = jobs
            .iter()
            .filter(|job| job.state.is_active())
            .map(|job| match job.progress.loss {
                Some(loss) => {
                    format!("job {} step {}/{} loss {loss:.2}", job.id, job.progress.step, job.progress.total_steps)
                }
                None => format!("job {} {}", job.id, job.progress.phase.as_deref().unwrap_or("starting")),
            })
            .collect();
        match (active.is_empty(), waiting) {
            (true, 0) => "idle".into(),
            (true, waiting) => format!("{waiting} waiting"),
            (false, 0) => active.join(", "),
            (false, waiting) => format!("{}, {waiting} waiting", active.join(", ")),
        }
    }

    /// Reads the configuration again and hands it round.
    ///
    /// # Errors
    /// It has a mistake, or changes what cannot change: then the old one stays.
    pub async fn reload(&self) -> anyhow::Result<Arc<Config>> {
        let config = Arc::new(Config::load(&self.sources)?);
        let old = self.config();
        for (key, is_same) in
            [("state_dir", config.state_dir == old.state_dir), ("control.socket", config.socket == old.socket)]
        {
            anyhow::ensure!(is_same, "`{key}` has changed, which takes a restart; nothing was changed");
        }
        *lock(&self.config) = config.clone();
        self.level.set(config.log_level.into());
        let _ = self.inbox.send(InboxMessage::Reconfigure(Box::new(Claims::of(&config))));
        self.tell(Command::Configure(config.clone())).await;
        Ok(config)
    }

    /// A job from the command line.
    ///
    /// # Errors
    /// The data cannot be read, or the recipe has a mistake.
    pub fn submit(&self, submission: &Submission) -> anyhow::Result<(Job, bool)> {
        let config = self.config();
        let mut merged = config.recipe.clone();
        recipe::merge(&mut merged, &submission.recipe);
        let recipe = Recipe::from_table(&merged)?;
        let take = |path: &PathBuf| -> anyhow::Result<snapshot::Snapshot> {
            anyhow::ensure!(path.is_absolute(), "{}: an absolute path is needed", path.display());
            let mut file =
                std::fs::File::open(path).with_context(|| format!("the daemon cannot open {}", path.display()))?;
            anyhow::ensure!(file.metadata()?.is_file(), "{} is not a regular file", path.display());
            snapshot::take(&mut file, path, &config.datasets_dir(), config.inbox.snapshot_limit.unwrap_or(u64::MAX))
        };
        let crashes = lock(&self.store).plugin_crashes()?;
        let plugins = Finder::of(&config).resolve(&recipe, &crashes)?;
        let data = take(&submission.data)?;
        let validation = submission.validation.as_ref().map(take).transpose()?;
        let stem = submission.data.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let new = NewJob {
            key: inbox_recipe::key(
                &data.sha256,
                validation.as_ref().map(|v| v.sha256.as_str()),
                submission.adapter.as_deref(),
                &recipe,
                &plugins,
            ),
            name: submission.name.clone().or(stem).unwrap_or_else(|| "data".into()),
            data: data.path,
            validation: validation.map(|v| v.path),
            data_sha256: data.sha256,
            recipe,
            adapter: submission.adapter.clone(),
            plugins,
            outputs: config.adapters_dir(),
        };
        let claimed = lock(&self.store).claim(&new)?;
        self.news.send_modify(|count| *count += 1);
        Ok(claimed)
    }
}
