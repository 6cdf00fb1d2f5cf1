//! The worker process: one job, reports on stdout, orders on stdin. It opens
//! the model and the device, so that the daemon never has to.

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use finetuned_engine::{Control, EngineError, Event, Observer, Outcome};
use finetuned_plugin_api::abi::calls;

use crate::filesystem::Lock;
use crate::supervisor::protocol::{LOCK_FILE, REQUEST_FILE, RunRequest, WorkerLine};
use crate::{plugins, run};

const HEARTBEAT: Duration = Duration::from_secs(2);

const CONTINUE: u8 = 0;
const STOP: u8 = 1;
const CANCEL: u8 = 2;

/// Runs the job whose folder is `job`. All that went wrong is told on stdout
/// before the process ends.
pub fn main(job: &Path) -> ExitCode {
    match work(job) {
        Ok(last) => {
            say(&last);
            ExitCode::SUCCESS
        }
        Err(error) => {
            let message = format!("{error:#}");
            let device = error.downcast_ref::<EngineError>().is_some_and(EngineError::is_of_the_device);
            say(&if device { WorkerLine::DeviceLost { message } } else { WorkerLine::Failed { message } });
            ExitCode::FAILURE
        }
    }
}

fn work(job: &Path) -> anyhow::Result<WorkerLine> {
    let path = job.join(REQUEST_FILE);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let request: RunRequest = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let _lock = Lock::take(&job.join(LOCK_FILE))?
        .map_err(|held| anyhow::anyhow!("another worker has this job (process {})", held.by.unwrap_or_default()))?;
    say(&WorkerLine::Hello { pid: std::process::id() });

    // Read by the daemon if this process ends without a word.
    calls::note_calls_in(&job.join(plugins::CALL_FILE))?;
    let order = Arc::new(AtomicU8::new(CONTINUE));
    let progress = Arc::new(AtomicU64::new(0));
    listen(order.clone());
    beat(progress.clone());
    let mut reporter = Reporter { order, progress };
    Ok(match run::execute(&request, &mut reporter)? {
        Outcome::Finished(summary) | Outcome::AlreadyFinished(summary) => WorkerLine::Done { summary },
        Outcome::Stopped { step } => WorkerLine::Stopped { step },
        Outcome::Cancelled { step } => WorkerLine::Cancelled { step },
    })
}

struct Reporter {
    order: Arc<AtomicU8>,
    progress: Arc<AtomicU64>,
}

impl Observer for Reporter {
    fn event(&mut self, event: &Event) {
        self.progress.fetch_add(1, Ordering::Relaxed);
        say(event);
    }

    fn control(&mut self) -> Control {
        self.progress.fetch_add(1, Ordering::Relaxed);
        match self.order.load(Ordering::Relaxed) {
            STOP => Control::Stop,
            CANCEL => Control::Cancel,
            _ => Control::Continue,
        }
    }
}

/// Reads orders. When stdin ends, the daemon is gone: checkpoint and end, so
/// that its successor can go on.
fn listen(order: Arc<AtomicU8>) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            match line.as_deref().map(str::trim) {
                Ok("cancel") => order.store(CANCEL, Ordering::Relaxed),
                Ok("stop") => order.store(STOP, Ordering::Relaxed),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        let _ = order.compare_exchange(CONTINUE, STOP, Ordering::Relaxed, Ordering::Relaxed);
    });
}

fn beat(progress: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(HEARTBEAT);
            say(&WorkerLine::Heartbeat { progress: progress.load(Ordering::Relaxed) });
        }
    });
}

/// One line on stdout. Nobody may be reading any more: that is no reason to
/// stop before the checkpoint.
fn say(line: &impl serde::Serialize) {
    if let Ok(mut text) = serde_json::to_string(line) {
        text.push('\n');
        let mut stdout = std::io::stdout().lock();
        let _ = stdout.write_all(text.as_bytes());
        let _ = stdout.flush();
    }
}
