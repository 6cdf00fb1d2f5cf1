//! How the daemon's tasks and threads reach the database: one thread owns it, and makes
//! one call after another. A call is short, because it sees the database alone. Files
//! are copied and children are asked between calls, never in one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;

use tokio::sync::{oneshot, watch};

use super::Store;
use crate::error::{Error, Result};

type Call = Box<dyn FnOnce(&mut Store) + Send>;

/// Cheap to clone. The thread ends with the last clone.
#[derive(Clone)]
pub struct StoreHandle {
    calls: mpsc::Sender<Call>,
    /// Counts the calls that may have written.
    news: watch::Sender<u64>,
}

impl StoreHandle {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(mut store: Store) -> Result<StoreHandle> {
        let (calls, receiver) = mpsc::channel::<Call>();
        std::thread::Builder::new().name("store".into()).spawn(move || {
            for call in receiver {
                // A call that panics answers nobody; its transaction was rolled back
                // while it unwound, so that the store is whole for the next one.
                let _ = catch_unwind(AssertUnwindSafe(|| call(&mut store)));
            }
        })?;
        Ok(StoreHandle { calls, news: watch::Sender::new(0) })
    }

    /// Changes after every call that may have written.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Reads, from a task.
    ///
    /// # Errors
    /// Those of `call`.
    pub async fn read<T: Send + 'static>(&self, call: impl FnOnce(&Store) -> Result<T> + Send + 'static) -> Result<T> {
        self.queue(move |store| call(store))?.await.map_err(|_| no_answer())?
    }

    /// Writes, from a task.
    ///
    /// # Errors
    /// Those of `call`.
    pub async fn write<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let answer = self.queue(call)?.await.map_err(|_| no_answer())?;
        self.news.send_modify(|count| *count += 1);
        answer
    }

    /// Reads, from a thread that may wait.
    ///
    /// # Errors
    /// Those of `call`.
    pub fn read_now<T: Send + 'static>(&self, call: impl FnOnce(&Store) -> Result<T> + Send + 'static) -> Result<T> {
        self.queue(move |store| call(store))?.blocking_recv().map_err(|_| no_answer())?
    }

    /// Writes, from a thread that may wait.
    ///
    /// # Errors
    /// Those of `call`.
    pub fn write_now<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let answer = self.queue(call)?.blocking_recv().map_err(|_| no_answer())?;
        self.news.send_modify(|count| *count += 1);
        answer
    }

    fn queue<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Store) -> Result<T> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T>>> {
        let (answer, receiver) = oneshot::channel();
        let call = Box::new(move |store: &mut Store| {
            let _ = answer.send(call(store));
        });
        self.calls.send(call).map_err(|_| no_answer())?;
        Ok(receiver)
    }
}

fn no_answer() -> Error {
    Error::internal("the database's thread has not answered")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_panics_is_an_error_and_the_next_call_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let store = StoreHandle::start(Store::open(&dir.path().join("t.db")).unwrap()).unwrap();
        let panicked: Result<()> = store.write_now(|_| panic!("on purpose"));
        assert!(panicked.is_err());
        assert_eq!(store.read_now(|store| store.job(1)).unwrap(), None);
    }

    #[test]
    fn news_follow_writes_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = StoreHandle::start(Store::open(&dir.path().join("t.db")).unwrap()).unwrap();
        let news = store.news();
        store.read_now(|store| store.job(1)).unwrap();
        assert!(!news.has_changed().unwrap());
        store.write_now(|store| store.restamp("/i".as_ref(), "a".as_ref(), "s")).unwrap();
        assert!(news.has_changed().unwrap());
    }
}
