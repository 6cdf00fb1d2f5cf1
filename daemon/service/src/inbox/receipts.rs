//! A thread that writes the receipts of jobs: an inbox may be on a slow disk or a
//! network, and nobody else must wait for it.

use std::collections::{BTreeSet, HashSet};
use std::sync::mpsc;

use super::receipt;
use crate::error::Result;
use crate::store::{FileRow, Job, StoreHandle};

/// Cheap to clone. The thread ends with the last clone.
#[derive(Clone)]
pub struct Receipts {
    tasks: mpsc::Sender<Task>,
}

enum Task {
    Job(i64),
    Every,
    /// Answered when all that was asked for before is written.
    Flush(mpsc::Sender<()>),
}

impl Receipts {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(store: StoreHandle) -> Result<Receipts> {
        let (tasks, receiver) = mpsc::channel();
        std::thread::Builder::new().name("receipts".into()).spawn(move || work(&store, &receiver))?;
        Ok(Receipts { tasks })
    }

    /// The job has changed: its receipts are written soon, one beside each of its files.
    pub fn refresh(&self, job: i64) {
        let _ = self.tasks.send(Task::Job(job));
    }

    /// After a start: a kill between a decision and its receipt leaves the receipt
    /// as it was, so each is compared with what it should say.
    pub fn refresh_every(&self) {
        let _ = self.tasks.send(Task::Every);
    }

    /// Waits until all that was asked for is written.
    pub fn flush(&self) {
        let (sender, receiver) = mpsc::channel();
        let _ = self.tasks.send(Task::Flush(sender));
        let _ = receiver.recv();
    }
}

fn work(store: &StoreHandle, tasks: &mpsc::Receiver<Task>) {
    while let Ok(first) = tasks.recv() {
        let mut jobs = BTreeSet::new();
        let mut every = false;
        let mut waiting = Vec::new();
        // A receipt is written from the present row, so one write answers many tasks.
        for task in std::iter::once(first).chain(tasks.try_iter()) {
            match task {
                Task::Job(id) => {
                    jobs.insert(id);
                }
                Task::Every => every = true,
                Task::Flush(answer) => waiting.push(answer),
            }
        }
        if every && let Err(error) = compare_all(store) {
            tracing::warn!("the receipts could not be compared: {error}");
        }
        for id in jobs {
            if let Err(error) = write_of(store, id) {
                tracing::warn!("receipts of job {id}: {error}");
            }
        }
        for answer in waiting {
            let _ = answer.send(());
        }
    }
}

fn write_of(store: &StoreHandle, id: i64) -> Result<()> {
    let read = store.read_now(move |store| Ok((store.job(id)?, store.files_of_job(id)?, store.now_ms())))?;
    let (Some(job), files, now_ms) = read else { return Ok(()) };
    for (index, file) in files.iter().enumerate() {
        write(file, &receipt::render(file, Some(&job), index > 0, now_ms));
    }
    Ok(())
}

fn compare_all(store: &StoreHandle) -> Result<()> {
    let mut seen = HashSet::new();
    for file in store.read_now(|store| store.files())? {
        let id = file.job;
        let (job, now_ms): (Option<Job>, u64) =
            store.read_now(move |store| Ok((id.map(|id| store.job(id)).transpose()?.flatten(), store.now_ms())))?;
        let is_copy = id.is_some_and(|id| !seen.insert(id));
        let text = receipt::render(&file, job.as_ref(), is_copy, now_ms);
        let old = std::fs::read_to_string(file.inbox.join(&file.receipt)).unwrap_or_default();
        // An inbox that is absent (an unmounted disk) is not made.
        if receipt::without_time(&old) != receipt::without_time(&text) && file.inbox.is_dir() {
            write(&file, &text);
        }
    }
    Ok(())
}

/// An inbox that cannot be written to is worth a line in the log, not more.
fn write(file: &FileRow, text: &str) {
    if let Err(error) = receipt::write(&file.inbox, &file.receipt, text) {
        tracing::warn!("receipt of {}: {error}", file.path.display());
    }
}
