//! The ledger of a device's memory.
//!
//! The runtime allocates lazily and learns that memory is short long after the
//! request. So the device keeps a ledger: it refuses a request beyond the budget by a
//! typed error, before the runtime hears of it. The pool of pages
//! (`gpu/pool.rs`) decides where a tensor is placed.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Result, TensorError};

/// Bytes in use, the most there were, and how many there may be.
#[derive(Debug)]
pub(crate) struct Ledger {
    live: AtomicU64,
    peak: AtomicU64,
    /// 0 if the device does not say how much it has.
    limit: AtomicU64,
    device: String,
}

impl Ledger {
    pub(super) fn new(limit: u64, device: &str) -> Ledger {
        Ledger { live: AtomicU64::new(0), peak: AtomicU64::new(0), limit: AtomicU64::new(limit), device: device.into() }
    }

    /// Enters a buffer.
    ///
    /// # Errors
    /// [`TensorError::Memory`] when it would go beyond the limit.
    pub(super) fn take(&self, op: &'static str, bytes: u64) -> Result<()> {
        let limit = self.limit.load(Ordering::Relaxed);
        let live = self.live.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if limit > 0 && live > limit {
            self.live.fetch_sub(bytes, Ordering::Relaxed);
            return Err(self.refusal(op, bytes));
        }
        self.peak.fetch_max(live, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn refusal(&self, op: &'static str, bytes: u64) -> TensorError {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        TensorError::Memory { op, bytes, device: self.device.clone() }
    }

    pub(super) fn counts(&self) -> (u64, u64) {
        (self.live.load(Ordering::Relaxed), self.peak.load(Ordering::Relaxed))
    }

    /// What [`Ledger::take`] entered is gone.
    pub(super) fn give(&self, bytes: u64) {
        self.live.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn device(&self) -> &str {
        &self.device
    }

    /// 0 if there is none.
    pub(super) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    pub(super) fn reset_peak(&self) {
        self.peak.store(self.live.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    pub(super) fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::Relaxed);
    }
}
