//! Fork and join over a few threads.
//!
//! The calling thread works too, so a device of one thread has no pool at
//! all. Work is handed out piece by piece from an iterator: pieces do not
//! depend on the number of threads, so neither do results.

use std::sync::{Mutex, PoisonError};

use crate::error::{Result, TensorError};

pub(crate) struct Workers {
    /// Threads beside the caller; `None` for a single-threaded device.
    pool: Option<rayon::ThreadPool>,
    threads: usize,
}

impl Workers {
    pub(crate) fn new(threads: usize) -> Result<Workers> {
        let threads = threads.max(1);
        let pool = if threads == 1 {
            None
        } else {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads - 1)
                .thread_name(|index| format!("tensor-{index}"))
                .build()
                .map_err(|error| TensorError::Failed { op: "cpu", reason: error.to_string() })?;
            Some(pool)
        };
        Ok(Workers { pool, threads })
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `work` on every item, on all threads.
    pub(crate) fn each<I>(&self, items: I, work: impl Fn(I::Item) + Sync)
    where
        I: ExactSizeIterator + Send,
        I::Item: Send,
    {
        let count = items.len();
        let Some(pool) = self.pool.as_ref().filter(|_| count > 1) else {
            items.for_each(work);
            return;
        };
        let queue = Mutex::new(items);
        let run = || {
            loop {
                let item = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                match item {
                    Some(item) => work(item),
                    None => break,
                }
            }
        };
        pool.in_place_scope(|scope| {
            for _ in 1..self.threads.min(count) {
                scope.spawn(|_| run());
            }
            run();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once() {
        for threads in [1, 2, 5] {
            let workers = Workers::new(threads).unwrap();
            let mut x = vec![0u32; 1003];
            workers.each(x.chunks_mut(10).enumerate(), |(index, chunk)| {
                for value in chunk {
                    *value += 1 + index as u32;
                }
            });
            assert!(x.iter().enumerate().all(|(i, v)| *v == 1 + (i / 10) as u32));
        }
    }
}
