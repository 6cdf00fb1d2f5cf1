//! Host memory: 64-byte aligned buffers that return to a pool when dropped.
//!
//! A training step makes the same temporaries again and again. Asking the
//! system for them each time costs a page fault per 4 KiB, more than many an
//! operation itself, so freed buffers are kept by size and handed out again
//! as they are. A buffer's bytes are always initialised (fresh memory comes
//! zeroed, recycled memory holds old values), so reading one before writing
//! it is a wrong number but never undefined.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use crate::error::{Result, TensorError};

/// A cache line, and the width of the widest vector register.
const ALIGNMENT: usize = 64;
/// Blocks from this size on start on a huge page and ask for them.
const HUGE_PAGE: usize = 2 << 20;

/// Memory from the system allocator; `bytes` fixes its layout.
struct Block {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a block is plain owned memory; nothing about it is tied to a thread.
unsafe impl Send for Block {}
// SAFETY: shared references only ever read the bytes.
unsafe impl Sync for Block {}

impl Block {
    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes, if bytes >= HUGE_PAGE { HUGE_PAGE } else { ALIGNMENT }).ok()
    }

    /// `None` when the system has no memory left.
    fn new(bytes: usize) -> Option<Block> {
        let layout = Block::layout(bytes)?;
        // SAFETY: the layout's size is never zero (see `bucket`).
        let start = NonNull::new(unsafe { alloc(layout) })?;
        if bytes >= HUGE_PAGE {
            ask_for_huge_pages(start, bytes);
        }
        // SAFETY: the allocation has `bytes` bytes; writing them all makes them
        // initialised, which everything after relies on.
        unsafe { start.write_bytes(0, bytes) };
        Some(Block { start, bytes })
    }
}

/// Large matrices are walked by rows far apart, each on a page of its own: with
/// pages of 4 KiB the processor's table of pages is too small for one product.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(start: NonNull<u8>, bytes: usize) {
    // SAFETY: the range lies within one allocation that begins on a page, and
    // the advice changes no byte of it. A system that refuses changes nothing.
    unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_: NonNull<u8>, _: usize) {}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(layout) = Block::layout(self.bytes) {
            // SAFETY: `start` came from `alloc` with this very layout.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

/// Rounds a size up so that nearly equal sizes share their buffers: at most
/// an eighth is lost. Packed batches differ in length from step to step.
fn bucket(bytes: usize) -> usize {
    let bytes = bytes.max(ALIGNMENT);
    let step = (bytes.next_power_of_two() >> 4).max(ALIGNMENT);
    bytes.div_ceil(step) * step
}

/// The buffers of one device: those in use are counted, those free are kept.
#[derive(Default)]
pub(crate) struct Pool {
    free: Mutex<Free>,
    live: AtomicU64,
    peak: AtomicU64,
}

#[derive(Default)]
struct Free {
    blocks: BTreeMap<usize, Vec<Block>>,
    bytes: u64,
    /// The most bytes that were ever live at once, resets notwithstanding.
    high_water: u64,
}

impl Pool {
    /// Memory for `bytes` bytes with whatever a former owner left in it, and
    /// whether it is known to be all zero.
    pub(crate) fn take(self: &Arc<Pool>, op: &'static str, bytes: usize) -> Result<(HostBuffer, bool)> {
        let size = bucket(bytes);
        let recycled = self.lock().take(size);
        let zeroed = recycled.is_none();
        let block = match recycled {
            Some(block) => block,
            None => match Block::new(size) {
                Some(block) => block,
                None => {
                    // The free buffers may be what stands in the way.
                    self.trim();
                    Block::new(size).ok_or(TensorError::Memory { op, bytes, device: "cpu".into() })?
                }
            },
        };
        let live = self.live.fetch_add(size as u64, Relaxed) + size as u64;
        self.peak.fetch_max(live, Relaxed);
        Ok((HostBuffer { block: Some(block), bytes, pool: Arc::clone(self) }, zeroed))
    }

    /// Bytes of live buffers now, and the most since the last reset.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.live.load(Relaxed), self.peak.load(Relaxed))
    }

    pub(crate) fn reset_peak(&self) {
        self.peak.store(self.live.load(Relaxed), Relaxed);
    }

    /// Gives the free buffers back to the system.
    pub(crate) fn trim(&self) {
        let mut free = self.lock();
        free.blocks.clear();
        free.bytes = 0;
    }

    fn give_back(&self, block: Block) {
        let size = block.bytes as u64;
        let live = self.live.fetch_sub(size, Relaxed) - size;
        self.lock().keep(block, live);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Free> {
        // A panic elsewhere cannot leave the lists half changed.
        self.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Free {
    fn take(&mut self, size: usize) -> Option<Block> {
        let blocks = self.blocks.get_mut(&size)?;
        let block = blocks.pop()?;
        if blocks.is_empty() {
            self.blocks.remove(&size);
        }
        self.bytes -= size as u64;
        Some(block)
    }

    /// Keeps a block unless what is kept and what is live would together pass
    /// the high-water mark by more than a quarter: then the largest free blocks
    /// go back, for they belong to batches of another shape.
    fn keep(&mut self, block: Block, live: u64) {
        let size = block.bytes;
        self.high_water = self.high_water.max(live + size as u64);
        self.bytes += size as u64;
        self.blocks.entry(size).or_default().push(block);
        while live + self.bytes > self.high_water + self.high_water / 4 {
            let Some((&largest, _)) = self.blocks.last_key_value() else { break };
            drop(self.take(largest));
        }
    }
}

/// The bytes of one tensor.
pub struct HostBuffer {
    /// `None` only while dropping.
    block: Option<Block>,
    bytes: usize,
    pool: Arc<Pool>,
}

impl std::fmt::Debug for HostBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostBuffer({} bytes)", self.bytes)
    }
}

impl HostBuffer {
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.block {
            // SAFETY: the block holds at least `bytes` initialised bytes, and
            // lives as long as `self`.
            Some(block) => unsafe { std::slice::from_raw_parts(block.start.as_ptr(), self.bytes) },
            None => &[],
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.block {
            // SAFETY: as above, and `&mut self` makes the access exclusive.
            Some(block) => unsafe { std::slice::from_raw_parts_mut(block.start.as_ptr(), self.bytes) },
            None => &mut [],
        }
    }

    /// Whether the buffer belongs to this pool, hence to its device.
    pub(crate) fn is_from(&self, pool: &Arc<Pool>) -> bool {
        Arc::ptr_eq(&self.pool, pool)
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            self.pool.give_back(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_lose_at_most_an_eighth_and_are_aligned() {
        for bytes in [0, 1, 64, 65, 1000, 4097, 123_457, 3 << 20, (3 << 20) + 1] {
            let size = bucket(bytes);
            assert!(size >= bytes && size.is_multiple_of(ALIGNMENT));
            assert!(size <= bytes + bytes / 8 + ALIGNMENT, "{bytes} became {size}");
        }
    }

    #[test]
    fn a_dropped_buffer_is_handed_out_again_and_counted() {
        let pool = Arc::new(Pool::default());
        let (mut first, fresh) = pool.take("test", 1 << 16).unwrap();
        assert!(fresh && first.bytes().iter().all(|b| *b == 0));
        first.bytes_mut()[5] = 9;
        let place = first.bytes().as_ptr();
        assert_eq!(place as usize % ALIGNMENT, 0);
        assert_eq!(pool.counts(), (1 << 16, 1 << 16));
        drop(first);
        assert_eq!(pool.counts(), (0, 1 << 16));
        let (second, fresh) = pool.take("test", 1 << 16).unwrap();
        assert!(!fresh);
        assert_eq!(second.bytes().as_ptr(), place);
        drop(second);
        pool.trim();
        pool.reset_peak();
        assert_eq!(pool.counts(), (0, 0));
    }

    #[test]
    fn free_memory_stays_below_the_high_water_mark() {
        let pool = Arc::new(Pool::default());
        for bytes in [1 << 20, 3 << 20, 5 << 20, 7 << 20] {
            drop(pool.take("test", bytes).unwrap());
        }
        assert!(pool.lock().bytes <= (7 << 20) * 5 / 4);
    }
}
