//! Host memory: 64-byte aligned buffers that return to a pool when dropped.
//!
//! A training step makes the same temporaries again and again. Asking the
//! system for them each time costs a page fault per 4 KiB, more than many an
//! operation itself, so freed buffers are kept by size and handed out again
//! as they are. A buffer's bytes are always initialised (fresh memory comes
//! zeroed, recycled memory holds old values), so reading one before writing
//! it is a wrong number but never undefined.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use crate::error::{Result, TensorError};

/// A cache line, and the width of the widest vector register.
const ALIGNMENT: usize = 64;
/// Blocks from this size on start on a huge page and ask for them.
const HUGE_PAGE: usize = 2 << 20;
/// Blocks from this size on are pages of their own.
const MAPPED: usize = 256 << 10;

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
    /// `None` when the system has no memory left.
    fn new(bytes: usize) -> Option<Block> {
        let start = if bytes >= MAPPED { pages::map(bytes)? } else { small(bytes)? };
        Some(Block { start, bytes })
    }
}

/// A small block, zeroed, from the program's allocator.
fn small(bytes: usize) -> Option<NonNull<u8>> {
    let layout = Layout::from_size_align(bytes, ALIGNMENT).ok()?;
    // SAFETY: the layout's size is never zero (see `bucket`).
    NonNull::new(unsafe { alloc_zeroed(layout) })
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.bytes >= MAPPED {
            pages::unmap(self.start, self.bytes);
        } else if let Ok(layout) = Layout::from_size_align(self.bytes, ALIGNMENT) {
            // SAFETY: `start` came from `alloc_zeroed` with this very layout.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

/// Large blocks are pages of their own, so that a dropped one goes back to the
/// system whole: through malloc, blocks of ever other sizes left holes that
/// doubled and trebled the process (its threshold for mapping grows to 32 MiB).
#[cfg(target_os = "linux")]
mod pages {
    use super::{HUGE_PAGE, NonNull};

    /// Zeroed pages. Large ones begin on a huge page and ask for huge ones: large
    /// matrices are walked by rows far apart, each on a page of its own, and with
    /// pages of 4 KiB the processor's table is too small for one product.
    pub(super) fn map(bytes: usize) -> Option<NonNull<u8>> {
        let bytes = bytes.checked_next_multiple_of(PAGE)?;
        if bytes < HUGE_PAGE {
            return fresh(bytes);
        }
        let whole = fresh(bytes.checked_add(HUGE_PAGE)?)?;
        let head = whole.as_ptr().align_offset(HUGE_PAGE);
        // SAFETY: `head` is below HUGE_PAGE, so block and rest lie in the mapping.
        let (start, rest) = unsafe { (whole.add(head), whole.add(head + bytes)) };
        unmap(whole, head);
        unmap(rest, HUGE_PAGE - head);
        // SAFETY: the range is this block's own, and the advice changes no byte of
        // it. A system that refuses changes nothing.
        unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        Some(start)
    }

    fn fresh(bytes: usize) -> Option<NonNull<u8>> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh anonymous mapping, placed by the system, touches nothing.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, kind, -1, 0) };
        if mapped == libc::MAP_FAILED { None } else { NonNull::new(mapped.cast()) }
    }

    /// Tells glibc to map its own large allocations apart as well, for good: by
    /// itself it stops doing so after the first is freed, and the tensors read
    /// from a checkpoint then leave holes in the heap.
    pub(super) fn keep_large_allocations_apart() {
        #[cfg(target_env = "gnu")]
        // SAFETY: the call only sets a parameter of the allocator.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, super::MAPPED as libc::c_int);
        }
    }

    /// Mappings are cut at multiples of this: the largest page that Linux uses.
    const PAGE: usize = 64 << 10;

    pub(super) fn unmap(start: NonNull<u8>, bytes: usize) {
        if bytes > 0 {
            // SAFETY: the range is part of a mapping of `map` that nothing refers to.
            unsafe { libc::munmap(start.as_ptr().cast(), bytes) };
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod pages {
    use super::{HUGE_PAGE, Layout, NonNull, alloc_zeroed, dealloc};

    pub(super) fn map(bytes: usize) -> Option<NonNull<u8>> {
        let layout = Layout::from_size_align(bytes, HUGE_PAGE).ok()?;
        // SAFETY: the layout's size is at least a huge page.
        NonNull::new(unsafe { alloc_zeroed(layout) })
    }

    pub(super) fn keep_large_allocations_apart() {}

    pub(super) fn unmap(start: NonNull<u8>, bytes: usize) {
        if let Ok(layout) = Layout::from_size_align(bytes, HUGE_PAGE) {
            // SAFETY: `start` came from `map` with this very layout.
            unsafe { dealloc(start.as_ptr(), layout) }
        }
    }
}

/// Rounds a size up so that nearly equal sizes share their buffers: at most
/// an eighth is lost. Packed batches differ in length from step to step.
pub(crate) fn bucket(bytes: usize) -> usize {
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
    /// An empty pool, for a device.
    pub(crate) fn new() -> Pool {
        pages::keep_large_allocations_apart();
        Pool::default()
    }

    /// Memory for `bytes` bytes with whatever a former owner left in it, and
    /// whether it is known to be all zero.
    pub(crate) fn take(self: &Arc<Pool>, op: &'static str, bytes: usize) -> Result<(HostBuffer, bool)> {
        let size = bucket(bytes);
        let recycled = {
            let mut free = self.lock();
            let found = free.take_near(size);
            if found.is_none() {
                free.make_room(size, self.live.load(Relaxed));
            }
            found
        };
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
        let size = block.bytes as u64;
        let live = self.live.fetch_add(size, Relaxed) + size;
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

    /// The smallest free block that holds `size` bytes and wastes at most a
    /// quarter: batches differ in length from step to step.
    fn take_near(&mut self, size: usize) -> Option<Block> {
        let (&near, _) = self.blocks.range(size..=size + size / 4).next()?;
        self.take(near)
    }

    /// Before a new block: free ones go back, the largest first, so that free and
    /// live together stay at the most that was ever live.
    fn make_room(&mut self, size: usize, live: u64) {
        let limit = self.high_water.max(live + size as u64);
        while live + self.bytes + size as u64 > limit {
            let Some((&largest, _)) = self.blocks.last_key_value() else { break };
            drop(self.take(largest));
        }
    }

    fn keep(&mut self, block: Block, live: u64) {
        let size = block.bytes;
        self.high_water = self.high_water.max(live + size as u64);
        self.bytes += size as u64;
        self.blocks.entry(size).or_default().push(block);
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
    fn free_and_live_memory_stay_at_the_high_water_mark() {
        let pool = Arc::new(Pool::default());
        let held = pool.take("test", 4 << 20).unwrap();
        for round in 0..3 {
            for mib in [1, 3, 5, 7, 11] {
                // Of a size that no earlier block fits.
                let bytes = (mib << 20) + (round << 16) + 1;
                drop(pool.take("test", bytes).unwrap());
                let free = pool.lock().bytes;
                assert!(pool.counts().0 + free <= pool.lock().high_water);
            }
        }
        drop(held);
    }

    #[test]
    fn a_large_block_begins_on_a_huge_page_and_is_zero() {
        for bytes in [HUGE_PAGE, HUGE_PAGE + 1, 3 * HUGE_PAGE - 64] {
            let pool = Arc::new(Pool::default());
            let (mut buffer, fresh) = pool.take("test", bytes).unwrap();
            assert!(fresh && buffer.bytes().iter().all(|b| *b == 0));
            assert_eq!(buffer.bytes().as_ptr() as usize % HUGE_PAGE, 0);
            buffer.bytes_mut().fill(7);
        }
    }
}
