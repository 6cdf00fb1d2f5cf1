//! A GPU that is open: its client, its memory, and how kernels reach both.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use cubecl::CubeDim;
use cubecl::client::Client;
use cubecl::prelude::{BufferArg, CubeCount};

use super::entry::GpuFacts;
use super::failure;
use super::kept::Kept;
use super::launch::{self, UNITS, argument, grid};
use super::ledger::Ledger;
use super::pool::{GpuBuffer, GpuMemory, Lives, Pool};

use crate::error::{Result, TensorError};
use crate::tensor::{DType, Storage, Tensor};

/// A GPU as a device.
pub struct Gpu {
    pub(super) client: Client,
    pub(super) facts: GpuFacts,
    pub(super) pool: Arc<Pool>,
    /// Lists of indices that were uploaded lately: a step uses the same
    /// positions in each layer.
    pub(super) words: Mutex<Vec<(Vec<u32>, Tensor)>>,
    /// What operations keep from one call to the next.
    pub(crate) kept: Kept,
    pub(crate) limits: Limits,
}

/// Sizes of what exists for a moment. Tests make them small.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of a piece of a weight in f32 that is being quantised.
    pub piece_bytes: u64,
    /// Bytes of a weight's rows that are unpacked for a product.
    pub panel_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { piece_bytes: 64 << 20, panel_bytes: 256 << 20 }
    }
}

/// Lists of indices that are kept.
const KEPT_WORDS: usize = 16;

impl Gpu {
    pub(super) fn new(mut client: Client, facts: GpuFacts) -> Gpu {
        launch::on_one_stream(&mut client);
        let ledger = Ledger::new(facts.memory_bytes, &facts.name);
        let pool = Arc::new(Pool::new(client.clone(), ledger, facts.largest_buffer));
        Gpu { client, facts, pool, words: Mutex::default(), kept: Kept::default(), limits: Limits::default() }
    }

    pub fn facts(&self) -> &GpuFacts {
        &self.facts
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// A budget of the caller's own, in bytes; 0 is none.
    pub fn limit_memory(&self, bytes: u64) {
        self.pool.ledger.set_limit(bytes);
    }

    /// What tensors take, and what the device gave for them.
    pub fn memory(&self) -> GpuMemory {
        self.pool.memory()
    }

    /// The error for whatever the runtime says.
    pub(crate) fn failed(&self, op: &'static str, reason: impl std::fmt::Display) -> TensorError {
        failure::failure(op, &self.facts.name, &reason.to_string())
    }

    /// Runs what may panic in the runtime (a lost device does).
    pub(crate) fn guarded<T>(&self, op: &'static str, work: impl FnOnce() -> T) -> Result<T> {
        std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
            let words = panic.downcast_ref::<String>().cloned();
            let words = words.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            self.failed(op, words.unwrap_or_else(|| "the driver gave up".into()))
        })
    }

    /// Bytes of a tensor on the device: whole words of four bytes, at least one.
    pub(super) fn whole_bytes(&self, op: &'static str, shape: &[usize], dtype: DType) -> Result<u64> {
        let bytes = shape.iter().try_fold(dtype.bytes(), |bytes, size| bytes.checked_mul(*size));
        let bytes = bytes.and_then(|bytes| bytes.max(4).checked_next_multiple_of(4));
        Ok(bytes.ok_or_else(|| self.pool.ledger.refusal(op, u64::MAX))? as u64)
    }

    pub(super) fn uninitialized(
        &self,
        op: &'static str,
        shape: &[usize],
        dtype: DType,
        lives: Lives,
    ) -> Result<Tensor> {
        let buffer = self.pool.take(op, self.whole_bytes(op, shape, dtype)?, lives)?;
        Ok(Tensor::new(shape, dtype, Storage::Gpu(Arc::new(buffer))))
    }

    /// A tensor whose values are arbitrary.
    pub(crate) fn empty(&self, op: &'static str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.uninitialized(op, shape, dtype, Lives::Step)
    }

    pub(crate) fn empty_f32(&self, op: &'static str, shape: &[usize]) -> Result<Tensor> {
        self.empty(op, shape, DType::F32)
    }

    fn buffer<'a>(&self, op: &'static str, x: &'a Tensor) -> Result<&'a Arc<GpuBuffer>> {
        let other = |got: &str| TensorError::Device { op, expected: self.facts.name.clone(), got: got.into() };
        match &x.storage {
            Storage::Gpu(buffer) if buffer.is_of(&self.pool) => Ok(buffer),
            Storage::Gpu(buffer) => Err(other(buffer.device())),
            Storage::Host(_) => Err(other("cpu")),
            Storage::Counted(_) => Err(other("a counting device")),
        }
    }

    /// Words of four bytes that hold a tensor's elements.
    pub(super) fn words_of(x: &Tensor) -> usize {
        x.bytes().div_ceil(4)
    }

    pub(crate) fn handle(&self, op: &'static str, x: &Tensor) -> Result<cubecl::server::Handle> {
        Ok(self.buffer(op, x)?.handle())
    }

    /// A tensor that a kernel reads.
    pub(crate) fn input(&self, op: &'static str, x: &Tensor, dtype: DType) -> Result<BufferArg> {
        x.expect_type(op, dtype)?;
        Ok(argument(self.handle(op, x)?, Gpu::words_of(x)))
    }

    pub(crate) fn input_f32(&self, op: &'static str, x: &Tensor) -> Result<BufferArg> {
        self.input(op, x, DType::F32)
    }

    /// A tensor that a kernel writes.
    ///
    /// # Errors
    /// [`TensorError::Shared`] where another tensor has the same storage.
    pub(crate) fn output(&self, op: &'static str, x: &mut Tensor, dtype: DType) -> Result<BufferArg> {
        x.expect_type(op, dtype)?;
        let words = Gpu::words_of(x);
        let handle = self.buffer(op, x)?.handle();
        if let Storage::Gpu(buffer) = &mut x.storage {
            Arc::get_mut(buffer).ok_or(TensorError::Shared { op })?;
        }
        Ok(argument(handle, words))
    }

    pub(crate) fn output_f32(&self, op: &'static str, x: &mut Tensor) -> Result<BufferArg> {
        self.output(op, x, DType::F32)
    }

    /// The accumulator of a backward pass, which the kernel adds to or, the
    /// flag says, overwrites.
    pub(crate) fn accumulator(
        &self,
        op: &'static str,
        shape: &[usize],
        into: Option<Tensor>,
    ) -> Result<(Tensor, bool)> {
        match into {
            Some(into) => {
                into.expect_shape(op, shape)?;
                Ok((into, true))
            }
            None => Ok((self.empty_f32(op, shape)?, false)),
        }
    }

    /// Launch sizes for one unit an element.
    pub(crate) fn elementwise(&self, elements: usize) -> (CubeCount, CubeDim) {
        (grid(elements.div_ceil(UNITS as usize)), CubeDim::new_1d(UNITS))
    }

    /// Launch sizes for one cube a row, and the units of a cube: a power of two
    /// near the row's length.
    pub(crate) fn by_row(&self, rows: usize, columns: usize) -> (CubeCount, CubeDim, usize) {
        let units = columns.next_power_of_two().clamp(32, UNITS as usize).min(self.facts.units_per_cube);
        (grid(rows), CubeDim::new_1d(units as u32), units)
    }

    /// Elements of a piece of a weight that is being quantised.
    pub(crate) fn piece_elements(&self) -> usize {
        (self.limits.piece_bytes.min(self.facts.largest_buffer) / 4) as usize
    }

    /// Elements of a panel of a weight that is unpacked for a product.
    pub(crate) fn panel_elements(&self) -> usize {
        (self.limits.panel_bytes.min(self.facts.largest_buffer) / 4) as usize
    }

    /// The most bytes that lists of so many indices take while they are kept.
    pub(crate) fn kept_index_bytes(&self, indices: usize) -> u64 {
        (4 * KEPT_WORDS * indices) as u64
    }

    /// Indices on the device.
    pub(crate) fn indices(&self, op: &'static str, words: &[u32]) -> Result<Tensor> {
        let mut kept = self.words.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(at) = kept.iter().position(|(known, _)| known == words) {
            let found = kept.remove(at);
            let tensor = found.1.clone();
            kept.push(found);
            return Ok(tensor);
        }
        let bytes = bytemuck::cast_slice(words);
        let tensor = self.upload_living(op, &[words.len()], DType::U32, bytes, Lives::On)?;
        if kept.len() >= KEPT_WORDS {
            kept.remove(0);
        }
        kept.push((words.to_vec(), tensor.clone()));
        Ok(tensor)
    }
}
