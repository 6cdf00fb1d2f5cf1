//! Wakes the scan when something happens in an inbox. Events only wake; the scan finds
//! out what there is to do, because events get lost: a recursive watch misses folders
//! that are made in a hurry, and a folder that is made anew is silent for ever.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{Config, Event, PollWatcher, RecommendedWatcher, RecursiveMode, Watcher};

use super::names::RECEIPTS;

/// The watch on one inbox.
pub struct Watch {
    inbox: PathBuf,
    /// Device and inode of the folder that is watched: a folder that was
    /// removed and made anew needs a new watch.
    identity: Option<(u64, u64)>,
    poll_every: Duration,
    watcher: Option<Box<dyn Watcher + Send>>,
    told: bool,
}

impl Watch {
    pub fn new(inbox: &Path, poll_every: Duration) -> Watch {
        Watch { inbox: inbox.to_path_buf(), identity: None, poll_every, watcher: None, told: false }
    }

    /// Called at every scan: arms the watch, or arms it anew.
    pub fn rearm(&mut self, wake: &(impl Fn() + Send + Sync + Clone + 'static)) {
        let identity = std::fs::metadata(&self.inbox).ok().map(|found| (found.dev(), found.ino()));
        if identity == self.identity && (self.watcher.is_some() || identity.is_none()) {
            return;
        }
        self.identity = identity;
        self.watcher = None;
        if identity.is_none() {
            return;
        }
        if !crate::filesystem::needs_polling(&self.inbox) {
            let wake = wake.clone();
            let armed = RecommendedWatcher::new(move |event| heard(event, &wake), Config::default())
                .and_then(|mut watcher| watcher.watch(&self.inbox, RecursiveMode::Recursive).map(|()| watcher));
            match armed {
                Ok(watcher) => {
                    self.watcher = Some(Box::new(watcher));
                    return;
                }
                // Too many watches on the machine, most often.
                Err(error) => self.tell(&format!("changes are not announced ({error})")),
            }
        } else {
            self.tell("it is on a file system that does not announce changes");
        }
        let wake = wake.clone();
        let config = Config::default().with_poll_interval(self.poll_every);
        let armed = PollWatcher::new(move |event| heard(event, &wake), config)
            .and_then(|mut watcher| watcher.watch(&self.inbox, RecursiveMode::Recursive).map(|()| watcher));
        match armed {
            Ok(watcher) => self.watcher = Some(Box::new(watcher)),
            Err(error) => self.tell(&format!("it cannot be watched ({error})")),
        }
    }

    fn tell(&mut self, what: &str) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                "inbox {}: {what}; it is looked at every {}",
                self.inbox.display(),
                humantime::format_duration(self.poll_every)
            );
        }
    }
}

fn heard(event: notify::Result<Event>, wake: &impl Fn()) {
    // A rescan flag comes with no path, an error may mean lost events: both
    // wake. Reading wakes nobody, and neither do our own receipts.
    let Ok(event) = event else { return wake() };
    let reading = matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write));
    let ours = !event.paths.is_empty()
        && event.paths.iter().all(|path| path.components().any(|part| part.as_os_str() == RECEIPTS));
    if event.need_rescan() || !(reading || ours) {
        wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn woken(receiver: &mpsc::Receiver<()>) -> bool {
        let woken = receiver.recv_timeout(Duration::from_secs(5)).is_ok();
        while receiver.recv_timeout(Duration::from_millis(200)).is_ok() {}
        woken
    }

    #[test]
    fn a_file_wakes_and_a_folder_made_anew_is_watched_anew() {
        let dir = tempfile::tempdir().unwrap();
        let inbox = dir.path().join("in");
        std::fs::create_dir(&inbox).unwrap();
        let (sender, receiver) = mpsc::channel();
        let wake = move || {
            let _ = sender.send(());
        };
        let mut watch = Watch::new(&inbox, Duration::from_millis(100));
        watch.rearm(&wake);
        std::fs::write(inbox.join("a.jsonl"), "x").unwrap();
        assert!(woken(&receiver));
        std::fs::remove_dir_all(&inbox).unwrap();
        watch.rearm(&wake);
        std::fs::create_dir(&inbox).unwrap();
        watch.rearm(&wake);
        while receiver.try_recv().is_ok() {}
        std::fs::write(inbox.join("b.jsonl"), "x").unwrap();
        assert!(woken(&receiver));
    }

    #[test]
    fn receipts_and_reading_wake_nobody() {
        let count = std::cell::Cell::new(0);
        let wake = || count.set(count.get() + 1);
        let event = |kind, path: &str| Ok(Event::new(kind).add_path(path.into()));
        heard(event(EventKind::Create(notify::event::CreateKind::File), "/i/_receipts/a.txt"), &wake);
        heard(event(EventKind::Access(AccessKind::Read), "/i/a.jsonl"), &wake);
        assert_eq!(count.get(), 0);
        heard(event(EventKind::Access(AccessKind::Close(AccessMode::Write)), "/i/a.jsonl"), &wake);
        heard(Ok(Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan)), &wake);
        heard(Err(notify::Error::generic("lost")), &wake);
        assert_eq!(count.get(), 3);
    }
}
