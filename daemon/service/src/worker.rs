//! The worker process: one job, reports on stdout, orders on stdin. It opens
//! the model and the device, so that the daemon never has to.

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use finetuned_engine::{Control, Event, Observer, Outcome};
use finetuned_plugin_api::abi::calls;

use crate::error::{Context, Error, Result};
use crate::filesystem::Lock;
use crate::protocol::{LOCK_FILE, Line, Order, REQUEST_FILE, RunRequest, WorkerLine};
use crate::{plugins, run};

const HEARTBEAT: Duration = Duration::from_secs(2);

/// What the daemon has ordered so far, shared between threads.
const CONTINUE: u8 = 0;
const STOP: u8 = 1;
const CANCEL: u8 = 2;

/// Runs the job whose folder is `job`. Whatever goes wrong is told on stdout before
/// the process ends.
pub fn main(job: &Path) -> ExitCode {
    match work(job) {
        Ok(last) => {
            say(last);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(WorkerLine::Failed { kind: error.kind(), message: error.to_string() });
            ExitCode::FAILURE
        }
    }
}

fn work(job: &Path) -> Result<WorkerLine> {
    let path = job.join(REQUEST_FILE);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let request: RunRequest = serde_json::from_str(&text).with_context(|| path.display())?;
    let _lock = Lock::take(&job.join(LOCK_FILE))?.map_err(|held| {
        Error::conflict(format!("another worker has this job (process {})", held.by.unwrap_or_default()))
    })?;
    say(WorkerLine::Hello { pid: std::process::id() });

    // Read by the daemon if this process ends without a last line.
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
        say(Line::Engine(Box::new(event.clone())));
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
            let Ok(line) = line else { break };
            match Order::of_line(&line) {
                Some(Order::Cancel) => order.store(CANCEL, Ordering::Relaxed),
                Some(Order::Stop) => order.store(STOP, Ordering::Relaxed),
                None => {}
            }
        }
        let _ = order.compare_exchange(CONTINUE, STOP, Ordering::Relaxed, Ordering::Relaxed);
    });
}

fn beat(progress: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(HEARTBEAT);
            say(WorkerLine::Heartbeat { progress: progress.load(Ordering::Relaxed) });
        }
    });
}

/// One line on stdout. A reader that is gone is not a reason to stop before the
/// checkpoint.
fn say(line: impl Into<Line>) {
    if let Ok(mut text) = serde_json::to_string(&line.into()) {
        text.push('\n');
        let mut stdout = std::io::stdout().lock();
        let _ = stdout.write_all(text.as_bytes());
        let _ = stdout.flush();
    }
}
