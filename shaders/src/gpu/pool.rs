//! A device's memory: pages that are asked of the runtime, and the tensors that
//! lie in them.
//!
//! There are two arenas. What lasts (weights, adapters, gradients, optimizer states) lies
//! in one whose pages come as they are needed: a large tensor has a page of its
//! own, small ones share. What a step makes lies in the other, whose pages are
//! there before the step ([`Pool::reserve`]). Without a reservation everything
//! lies in the first.
//!
//! A region that is given back may be taken at once, though kernels that read it
//! are still queued: all work of a device is on one stream, in order.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cubecl::MemoryScope;
use cubecl::client::Client;
use cubecl::future::block_on;
use cubecl::server::Handle;

use super::arena::{Arena, Region};
use super::failure::failure;
use super::launch::own_allocation;
use super::ledger::Ledger;
use crate::error::{Result, TensorError};

/// At least what drivers ask of a storage buffer's offset.
const ALIGNMENT: u64 = 256;

/// Bytes of a page that several tensors share, at most: a driver that gives large
/// buffers reluctantly gives these.
const LARGEST_PAGE: u64 = 1 << 30;

/// A lasting tensor of so many bytes has a page of its own.
const LARGE: u64 = 8 << 20;

/// A shared page that is added is this share of what is there already, so that
/// there are few pages and little of them is empty.
const GROWTH: u64 = 8;

/// Bytes of the smallest and the largest page that is added by itself.
const ADDED: std::ops::RangeInclusive<u64> = 64 << 10..=64 << 20;

/// How long a tensor lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lives {
    /// At most until the step's end, where memory was reserved for steps.
    Step,
    /// Beyond it.
    On,
}

/// Where a tensor lies.
#[derive(Debug, Clone, Copy)]
struct Place {
    lives: Lives,
    region: Region,
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
    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    pub(super) fn is_of(&self, pool: &Arc<Pool>) -> bool {
        Arc::ptr_eq(&self.pool, pool)
    }

    pub(super) fn device(&self) -> &str {
        self.pool.ledger.device()
    }
}

impl Drop for GpuBuffer {
    fn drop(&mut self) {
        self.pool.give(self.place, self.bytes);
    }
}

/// What a device holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuMemory {
    /// Of live tensors.
    pub live: u64,
    /// The most of them since the last reset.
    pub peak: u64,
    /// Of the pages in which tensors lie.
    pub pages: u64,
    /// Of those, what was reserved for steps.
    pub reserved: u64,
    /// How often the runtime was asked for a page.
    pub requests: u64,
    /// Of what the runtime holds of the device for all its users, the buffers of its
    /// own for launches and reads left out.
    pub runtime: u64,
}

struct Arenas {
    lasting: Arena<Handle>,
    step: Arena<Handle>,
    /// Whether memory was reserved for steps.
    reserved: bool,
    requests: u64,
}

/// The memory of a device.
pub(crate) struct Pool {
    pub(super) ledger: Ledger,
    client: Client,
    largest_buffer: u64,
    arenas: Mutex<Arenas>,
}

impl Pool {
    /// `largest_buffer` bytes is the most that the device gives in one piece.
    pub(super) fn new(client: Client, ledger: Ledger, largest_buffer: u64) -> Pool {
        let alignment = client.properties().memory.alignment.max(ALIGNMENT);
        let arenas =
            Arenas { lasting: Arena::new(alignment), step: Arena::new(alignment), reserved: false, requests: 0 };
        Pool { ledger, client, largest_buffer, arenas: Mutex::new(arenas) }
    }

    fn arenas(&self) -> MutexGuard<'_, Arenas> {
        self.arenas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory of `bytes` bytes, a multiple of four.
    ///
    /// # Errors
    /// [`TensorError::Memory`] beyond the ledger's
    /// limit, beyond the largest buffer, and if the device gives no page. A lost
    /// device.
    pub(super) fn take(self: &Arc<Pool>, op: &'static str, bytes: u64, lives: Lives) -> Result<GpuBuffer> {
        if bytes > self.largest_buffer {
            return Err(self.ledger.refusal(op, bytes));
        }
        self.ledger.take(op, bytes)?;
        match self.place(op, bytes, lives) {
            Ok((place, handle)) => Ok(GpuBuffer { handle, bytes, place, pool: self.clone() }),
            Err(error) => {
                self.ledger.give(bytes);
                Err(error)
            }
        }
    }

    fn place(&self, op: &'static str, bytes: u64, lives: Lives) -> Result<(Place, Handle)> {
        let mut arenas = self.arenas();
        let lives = if arenas.reserved { lives } else { Lives::On };
        if let Some(found) = arenas.take(bytes, lives) {
            return Ok(found);
        }
        self.grow(op, &mut arenas, bytes, lives)?;
        arenas.take(bytes, lives).ok_or_else(|| self.ledger.refusal(op, bytes))
    }

    /// Gives a tensor's place back, and its bytes in the ledger.
    fn give(&self, place: Place, bytes: u64) {
        self.arenas().of(place.lives).give(place.region);
        self.ledger.give(bytes);
    }

    /// Adds a page that holds `bytes`.
    fn grow(&self, op: &'static str, arenas: &mut Arenas, bytes: u64, lives: Lives) -> Result<()> {
        let needed = arenas.of(lives).rounded(bytes);
        let shared = (arenas.of(lives).bytes() / GROWTH).clamp(*ADDED.start(), *ADDED.end());
        let shared = arenas.of(lives).rounded(shared).min(self.largest_buffer);
        if lives == Lives::On && needed >= LARGE {
            return self.page_or_room(op, arenas, needed, lives);
        }
        if shared > needed && self.page(op, arenas, shared, lives).is_ok() {
            return Ok(());
        }
        self.page_or_room(op, arenas, needed, lives)
    }

    /// A page; if there is none, pages in which nothing lies go first.
    fn page_or_room(&self, op: &'static str, arenas: &mut Arenas, bytes: u64, lives: Lives) -> Result<()> {
        match self.page(op, arenas, bytes, lives) {
            Err(TensorError::Memory { .. }) => {
                arenas.remove_free();
                self.page(op, arenas, bytes, lives)
            }
            done => done,
        }
    }

    /// One page of so many bytes, within the limit.
    fn page(&self, op: &'static str, arenas: &mut Arenas, bytes: u64, lives: Lives) -> Result<()> {
        let limit = self.ledger.limit();
        if limit > 0 && arenas.bytes() + bytes > limit {
            return Err(self.ledger.refusal(op, bytes));
        }
        arenas.requests += 1;
        let handle = self.ask(op, bytes)?;
        arenas.of(lives).add(bytes, handle);
        Ok(())
    }

    /// Asks the runtime for a page. It allocates behind our back, after it gave back
    /// the pages that are gone, and tells nobody that it could not; reading from the
    /// page does.
    ///
    /// # Errors
    /// [`TensorError::Memory`]; [`TensorError::Lost`] if the device is.
    fn ask(&self, op: &'static str, bytes: u64) -> Result<Handle> {
        let asked = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let handle = own_allocation(&self.client, || self.client.empty(bytes as usize));
            let first = handle.clone().offset_end(bytes - 4);
            self.client.read_one(first).map(|_| handle)
        }));
        if let Ok(Ok(handle)) = asked {
            return Ok(handle);
        }
        // A device that is lost gives no page either, and no other call anything.
        let fault = match std::panic::catch_unwind(AssertUnwindSafe(|| block_on(self.client.sync()))) {
            Ok(Ok(())) => return Err(self.ledger.refusal(op, bytes)),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the driver gave up".into(),
        };
        Err(failure(op, self.ledger.device(), &fault))
    }

    fn cleanup(&self) {
        // Buffers that could not be given back stay for reuse.
        let _ = std::panic::catch_unwind(AssertUnwindSafe(|| self.client.memory_cleanup()));
    }

    /// Makes the pages of the arena in which the tensors of steps then lie.
    ///
    /// # Errors
    /// [`TensorError::Memory`] if the limit or the
    /// device does not allow them; what was reserved before is given back. A lost
    /// device.
    pub(super) fn reserve(&self, bytes: u64) -> Result<()> {
        const OP: &str = "reserve";
        let mut arenas = self.arenas();
        let bytes = arenas.step.rounded(bytes);
        arenas.lasting.remove_free();
        // What lies there already (another run's weights) is no step's.
        let wanted = arenas.step.used() + bytes;
        if arenas.step.bytes() < wanted {
            // One page is better than two.
            arenas.step.remove_free();
        }
        self.cleanup();
        let most = LARGEST_PAGE.min(self.largest_buffer);
        while arenas.step.bytes() < wanted {
            let missing = wanted - arenas.step.bytes();
            if let Err(error) = self.page(OP, &mut arenas, missing.min(most), Lives::Step) {
                arenas.step.remove_free();
                return Err(match error {
                    TensorError::Memory { .. } => self.ledger.refusal(OP, bytes),
                    other => other,
                });
            }
        }
        arenas.reserved = true;
        Ok(())
    }

    /// Gives back the pages in which nothing lies.
    pub(super) fn trim(&self) {
        self.arenas().remove_free();
        self.cleanup();
    }

    pub(super) fn memory(&self) -> GpuMemory {
        let (live, peak) = self.ledger.counts();
        let report = std::panic::catch_unwind(AssertUnwindSafe(|| self.client.memory_report(MemoryScope::Device)));
        let streams = report.map(|report| report.streams).unwrap_or_default();
        let runtime = streams.iter().map(|stream| stream.pools.usage().bytes_reserved).sum();
        let arenas = self.arenas();
        let (pages, reserved, requests) = (arenas.bytes(), arenas.step.bytes(), arenas.requests);
        GpuMemory { live, peak, pages, reserved, requests, runtime }
    }
}

impl Arenas {
    fn of(&mut self, lives: Lives) -> &mut Arena<Handle> {
        match lives {
            Lives::Step => &mut self.step,
            Lives::On => &mut self.lasting,
        }
    }

    fn bytes(&self) -> u64 {
        self.lasting.bytes() + self.step.bytes()
    }

    fn remove_free(&mut self) {
        self.lasting.remove_free();
        self.step.remove_free();
    }

    fn take(&mut self, bytes: u64, lives: Lives) -> Option<(Place, Handle)> {
        let (region, page) = self.of(lives).take(bytes)?;
        let after = page.size() - region.offset - bytes;
        let handle = page.clone().offset_start(region.offset).offset_end(after);
        Some((Place { lives, region }, handle))
    }
}
