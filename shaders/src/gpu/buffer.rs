//! A tensor's memory, and the ledger of all of it.
//!
//! The runtime allocates lazily and learns that memory is short long after the
//! request. So the device keeps its own ledger: a request beyond the budget is
//! refused here, by a typed error, before the runtime hears of it. Where a tensor
//! lies is the [`pool`](super::pool)'s affair.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cubecl::server::Handle;

use super::pool::{Place, Pool};
use crate::error::{Result, TensorError};

/// Bytes in use, the most there were, and how many there may be.
#[derive(Debug)]
pub(crate) struct Ledger {
    live: AtomicU64,
    peak: AtomicU64,
    /// 0 where the device does not say how much it has.
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

    /// 0 where there is none.
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

/// A tensor's memory on a GPU. Bytes of types smaller than four are packed
/// into words, in little-endian order: kernels bind f32 and u32 alone.
pub struct GpuBuffer {
    handle: Handle,
    bytes: u64,
    place: Place,
    pool: Arc<Pool>,
}

impl std::fmt::Debug for GpuBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GpuBuffer({} bytes on {})", self.bytes, self.device())
    }
}

impl GpuBuffer {
    /// The bytes must have been entered in the pool's ledger.
    pub(super) fn new(handle: Handle, bytes: u64, place: Place, pool: Arc<Pool>) -> GpuBuffer {
        GpuBuffer { handle, bytes, place, pool }
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    pub(super) fn is_of(&self, pool: &Arc<Pool>) -> bool {
        Arc::ptr_eq(&self.pool, pool)
    }

    pub(super) fn device(&self) -> &str {
        &self.pool.ledger.device
    }
}

impl Drop for GpuBuffer {
    fn drop(&mut self) {
        self.pool.give(self.place, self.bytes);
    }
}
