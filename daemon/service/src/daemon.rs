//! The daemon: its parts made and joined, and its main loop.

use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::config::{Config, Sources};
use crate::control::{Configuration, Control, Parts, Phase};
use crate::error::{self, Context, Error, Result};
use crate::exit;
use crate::filesystem::Lock;
use crate::http::server;
use crate::inbox::{Claims, Inbox, InboxThread, Receipts};
use crate::logging::{self, Level};
use crate::process::own_program;
use crate::service_manager::ServiceManager;
use crate::signals::{Signal, Signals};
use crate::store::{Store, StoreHandle};
use crate::supervisor::{Command, Supervisor};

/// Held as long as the daemon lives.
const LOCK_FILE: &str = "finetuned.lock";
/// How often the service manager's one line is made anew.
const STATUS_EVERY: Duration = Duration::from_secs(2);
/// How long the end waits for receipts. The next start compares them all.
const LAST_RECEIPTS: Duration = Duration::from_secs(5);

/// Runs the daemon until it is told to stop.
pub fn main(sources: &Sources) -> ExitCode {
    match run(sources) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error::report("finetuned", error),
    }
}

fn run(sources: &Sources) -> Result<()> {
    let config = Arc::new(Config::load(sources)?);
    let level = logging::start(config.log_level.into());
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let of_state = |error: Error| error.exit(exit::STATE);
    let _lock = take_state(&config).map_err(of_state)?;
    let store = Store::open(&config.database()).map_err(of_state)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ended = runtime.block_on(serve(sources.clone(), config, store, level));
    // A request that copies a large file is not waited for: it decides nothing half.
    runtime.shutdown_background();
    ended
}

/// Makes the state folder and takes its lock: one daemon per folder.
fn take_state(config: &Config) -> Result<Lock> {
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
        let message = format!("{} is in use by {holder}", config.state_dir.display());
        Error::conflict(message).remedy("stop it, or set another state_dir")
    })
}

/// The parts at work.
struct Wired {
    parts: Parts,
    inbox_thread: JoinHandle<()>,
    supervisor: tokio::task::JoinHandle<()>,
}

/// Makes the parts, and joins them: the inbox wakes the supervisor, the supervisor's
/// ended jobs wake the inbox.
fn wire(config: &Arc<Config>, store: StoreHandle) -> Result<Wired> {
    let receipts = Receipts::start(store.clone())?;
    receipts.refresh_every();
    let (commands, command_receiver) = mpsc::channel(64);
    let inbox = Inbox::new(Claims::of(config), store.clone(), receipts.clone());
    let new_job = commands.clone();
    let (inbox, inbox_thread) = InboxThread::start(inbox, move || {
        let _ = new_job.blocking_send(Command::Wake);
    })?;
    let ended = inbox.clone();
    let supervisor =
        Supervisor::new(config.clone(), store.clone(), receipts.clone(), own_program()?, move || ended.wake());
    let supervisor = tokio::spawn(supervisor.run(command_receiver));
    Ok(Wired { parts: Parts { store, receipts, inbox, supervisor: commands }, inbox_thread, supervisor })
}

async fn serve(sources: Sources, config: Arc<Config>, mut store: Store, level: Level) -> Result<()> {
    let manager = ServiceManager::of_process();
    let mut signals = Signals::new()?;
    for job in store.requeue_active("the daemon was restarted; the job goes on from its last checkpoint")? {
        tracing::info!(job = job.id, "job {} goes on", job.id);
    }
    let Wired { parts, inbox_thread, mut supervisor } = wire(&config, StoreHandle::start(store)?)?;
    let control = Arc::new(Control::new(Configuration::new(sources, config.clone(), level), parts.clone()));
    let listener = server::bind(&config.socket)?;
    let server = tokio::spawn(axum::serve(listener, server::router(control.clone())).into_future());

    manager.ready();
    tracing::info!("state in {}, control at {}", config.state_dir.display(), config.socket.display());
    for inbox in &config.inbox.paths {
        tracing::info!("inbox {}", inbox.display());
    }

    let mut alive = tokio::time::interval(manager.alive_every());
    let mut status = tokio::time::interval(STATUS_EVERY);
    loop {
        tokio::select! {
            _ = &mut supervisor => break,
            signal = signals.next() => obey(signal, &control, &manager).await,
            _ = alive.tick() => manager.alive(),
            _ = status.tick() => manager.status(&control.status_line().await),
        }
    }
    control.set_phase(Phase::Stopped);
    parts.inbox.stop();
    server.abort();
    let _ = std::fs::remove_file(&config.socket);
    let receipts = parts.receipts.clone();
    let _ = tokio::time::timeout(LAST_RECEIPTS, tokio::task::spawn_blocking(move || receipts.flush())).await;
    // A scan that copies a large file is not waited for: it decides nothing
    // half.
    if inbox_thread.is_finished() {
        let _ = inbox_thread.join();
    }
    tracing::info!("stopped");
    Ok(())
}

async fn obey(signal: Signal, control: &Control, manager: &ServiceManager) {
    if signal == Signal::Reload {
        return match control.reload().await {
            Ok(_) => tracing::info!("the configuration was read again"),
            Err(error) => tracing::error!("the configuration stays as it was: {error}"),
        };
    }
    tracing::info!("stopping: each worker ends its step and writes a checkpoint");
    control.set_phase(Phase::Stopping);
    manager.stopping();
    manager.extend(control.config().workers.stop_timeout + Duration::from_secs(10));
    control.tell(Command::Shutdown).await;
    if signal == Signal::Quit {
        control.tell(Command::Shutdown).await;
    }
}
