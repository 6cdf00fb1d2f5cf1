//! What the control interface does: looks at the store, and passes wishes on to the
//! supervisor and the inbox. Files are copied and plugins asked on blocking threads,
//! with no call to the database held meanwhile.

mod reload;
mod retry;
mod status;
mod submit;

use std::time::Instant;

use tokio::sync::{mpsc, oneshot, watch};

use crate::api::JobView;
use crate::error::{Error, Result};
use crate::inbox::{InboxThread, Receipts};
use crate::store::{EventRow, Job, StoreHandle};
use crate::supervisor::{Answer, Command};

pub use reload::Configuration;

/// How far the daemon is with its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It takes jobs.
    Works,
    /// It was told to stop and waits for its workers.
    Stopping,
    /// Its workers have ended.
    Stopped,
}

/// What the daemon's parts are told through.
#[derive(Clone)]
pub struct Parts {
    /// The database.
    pub store: StoreHandle,
    /// Who writes receipts.
    pub receipts: Receipts,
    /// Who scans the inboxes.
    pub inbox: InboxThread,
    /// Who starts and stops workers.
    pub supervisor: mpsc::Sender<Command>,
}

/// What the control interface works on.
pub struct Control {
    configuration: Configuration,
    parts: Parts,
    started: Instant,
    phase: watch::Sender<Phase>,
}

impl Control {
    /// A daemon that works.
    pub fn new(configuration: Configuration, parts: Parts) -> Control {
        Control { configuration, parts, started: Instant::now(), phase: watch::Sender::new(Phase::Works) }
    }

    /// How far its end is.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Says how far its end is.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Tells the supervisor.
    pub async fn tell(&self, command: Command) {
        let _ = self.parts.supervisor.send(command).await;
    }

    /// Asks the supervisor about a job.
    ///
    /// # Errors
    /// Its answer is no, or the daemon is stopping.
    pub async fn ask(&self, command: impl FnOnce(Answer) -> Command) -> Result<JobView> {
        let (sender, receiver) = oneshot::channel();
        self.tell(command(sender)).await;
        let answer = receiver.await;
        answer
            .map_err(|_| Error::new(finetuned_engine::ErrorKind::Cancelled, "the daemon is stopping"))?
            .map(Into::into)
    }

    /// Changes after every write to the store.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.parts.store.news()
    }

    /// # Errors
    /// There is no such job, or the database cannot be read.
    pub async fn job(&self, id: i64) -> Result<Job> {
        self.parts.store.read(move |store| store.existing(id)).await
    }

    /// # Errors
    /// The database cannot be read.
    pub async fn events(&self, job: Option<i64>, after: i64, limit: usize) -> Result<Vec<EventRow>> {
        self.parts.store.read(move |store| store.events(job, after, limit)).await
    }
}
