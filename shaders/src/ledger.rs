//! The ledger of a counting device: bytes live, and the most there were.
//!
//! It stands alone, because tensors and optimizer states hold its entries.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes live now, and the most since the last reset.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    live: AtomicU64,
    peak: AtomicU64,
}

impl Ledger {
    /// Bytes live now, and the most since the last reset.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.live.load(Relaxed), self.peak.load(Relaxed))
    }

    /// From now on the most is counted anew.
    pub(crate) fn reset_peak(&self) {
        self.peak.store(self.live.load(Relaxed), Relaxed);
    }
}

/// The bytes of one tensor in a ledger; they are given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    bytes: u64,
    ledger: Arc<Ledger>,
}

impl Counted {
    /// Takes this many bytes.
    pub(crate) fn new(bytes: u64, ledger: &Arc<Ledger>) -> Counted {
        let live = ledger.live.fetch_add(bytes, Relaxed) + bytes;
        ledger.peak.fetch_max(live, Relaxed);
        Counted { bytes, ledger: Arc::clone(ledger) }
    }

    /// Whether these bytes are of this ledger.
    pub(crate) fn is_of(&self, ledger: &Arc<Ledger>) -> bool {
        Arc::ptr_eq(&self.ledger, ledger)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.ledger.live.fetch_sub(self.bytes, Relaxed);
    }
}
