//! The inbox's thread: scans at once, when woken, and every `scan_every`.

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::watch::Watch;
use super::{Claims, Inbox, InboxStatus};
use crate::error::Result;

/// Changes that come together are scanned together.
const COALESCE: Duration = Duration::from_millis(250);

enum Message {
    Wake,
    Reconfigure(Box<Claims>),
    Stop,
}

/// The way to the thread. Cheap to clone.
#[derive(Clone)]
pub struct InboxThread {
    messages: mpsc::Sender<Message>,
    statuses: watch::Receiver<Vec<InboxStatus>>,
}

impl InboxThread {
    /// Starts the thread; `new_job` is called when a scan has made a job.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(inbox: Inbox, new_job: impl Fn() + Send + 'static) -> Result<(InboxThread, JoinHandle<()>)> {
        let (messages, receiver) = mpsc::channel();
        let (sender, statuses) = watch::channel(Vec::new());
        let wake = messages.clone();
        let thread = std::thread::Builder::new()
            .name("inbox".into())
            .spawn(move || work(inbox, &wake, &receiver, &sender, &new_job))?;
        Ok((InboxThread { messages, statuses }, thread))
    }

    /// Scans soon.
    pub fn wake(&self) {
        let _ = self.messages.send(Message::Wake);
    }

    /// Scans with a configuration that was read again.
    pub fn reconfigure(&self, claims: Claims) {
        let _ = self.messages.send(Message::Reconfigure(Box::new(claims)));
    }

    /// Ends the thread after its present scan.
    pub fn stop(&self) {
        let _ = self.messages.send(Message::Stop);
    }

    /// What the last scan found.
    pub fn statuses(&self) -> Vec<InboxStatus> {
        self.statuses.borrow().clone()
    }
}

fn work(
    mut inbox: Inbox,
    wake: &mpsc::Sender<Message>,
    messages: &mpsc::Receiver<Message>,
    statuses: &watch::Sender<Vec<InboxStatus>>,
    new_job: &dyn Fn(),
) {
    let begin = Instant::now();
    let mut watches: Vec<(PathBuf, Watch)> = Vec::new();
    loop {
        let every = inbox.scan_every();
        watches.retain(|(path, _)| inbox.paths().contains(path));
        for path in inbox.paths() {
            if !watches.iter().any(|(known, _)| known == path) {
                watches.push((path.clone(), Watch::new(path, every)));
            }
        }
        let sender = wake.clone();
        let wake = move || {
            let _ = sender.send(Message::Wake);
        };
        for (_, watch) in &mut watches {
            watch.rearm(&wake);
        }
        let scan = inbox.scan(begin.elapsed());
        statuses.send_replace(scan.statuses);
        if !scan.new_jobs.is_empty() {
            new_job();
        }
        let wait = scan.again_in.map_or(every, |again| again.min(every));
        let mut message = match messages.recv_timeout(wait) {
            Ok(message) => Some(message),
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        };
        if matches!(message, Some(Message::Wake)) {
            std::thread::sleep(COALESCE);
        }
        while let Some(received) = message {
            match received {
                Message::Wake => {}
                Message::Reconfigure(claims) => inbox.reconfigure(*claims),
                Message::Stop => return,
            }
            message = messages.try_recv().ok();
        }
    }
}
