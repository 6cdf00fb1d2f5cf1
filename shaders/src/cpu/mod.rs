//! The CPU device: pooled host memory, a few threads, vectorised loops.

mod buffer;
pub(crate) mod gemm;
mod memory;
pub(crate) mod simd;
#[cfg(target_arch = "x86_64")]
mod simd_x86;
pub(crate) mod workers;

use std::sync::Arc;

pub use buffer::HostBuffer;
pub(crate) use buffer::{Pool, bucket};
use workers::Workers;

use crate::error::{Result, TensorError};
use crate::tensor::{DType, Storage, Tensor};

/// The CPU as a device.
pub struct Cpu {
    pool: Arc<Pool>,
    pub(crate) workers: Workers,
    /// Plans and buffers of optimizer programs.
    pub(crate) program: std::sync::Mutex<crate::ops::program::cpu::Scratch>,
}

impl Cpu {
    /// A device of this many threads; `None` takes as many as the machine has
    /// cores for this process.
    pub(crate) fn new(threads: Option<usize>) -> Result<Cpu> {
        let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
        Ok(Cpu { pool: Arc::new(Pool::new()), workers: Workers::new(threads)?, program: Default::default() })
    }

    /// A tensor whose values are arbitrary (those of whoever had the memory
    /// before): for results that are written whole.
    pub(crate) fn empty(&self, op: &'static str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let bytes = shape.iter().try_fold(dtype.bytes(), |bytes, size| bytes.checked_mul(*size));
        let bytes = bytes.ok_or_else(|| TensorError::Memory { op, bytes: usize::MAX, device: "cpu".into() })?;
        let (buffer, _) = self.pool.take(op, bytes)?;
        Ok(Tensor::new(shape, dtype, Storage::Host(Arc::new(buffer))))
    }

    pub(crate) fn empty_f32(&self, op: &'static str, shape: &[usize]) -> Result<Tensor> {
        self.empty(op, shape, DType::F32)
    }

    pub(crate) fn zeros_f32(&self, op: &'static str, shape: &[usize]) -> Result<Tensor> {
        let mut x = self.empty_f32(op, shape)?;
        self.fill(self.f32_mut(op, &mut x)?, 0.0);
        Ok(x)
    }

    /// The accumulator of a backward pass: what was handed in, or zeros.
    pub(crate) fn accumulator(&self, op: &'static str, shape: &[usize], into: Option<Tensor>) -> Result<Tensor> {
        match into {
            Some(into) => {
                into.expect_shape(op, shape)?;
                Ok(into)
            }
            None => self.zeros_f32(op, shape),
        }
    }

    /// The bytes of a tensor of this type on this device.
    fn bytes<'a>(&self, op: &'static str, x: &'a Tensor, dtype: DType) -> Result<&'a [u8]> {
        x.expect_type(op, dtype)?;
        let Storage::Host(buffer) = &x.storage else { return Err(elsewhere(op)) };
        self.own(op, buffer)?;
        Ok(buffer.bytes())
    }

    fn bytes_mut<'a>(&self, op: &'static str, x: &'a mut Tensor, dtype: DType) -> Result<&'a mut [u8]> {
        x.expect_type(op, dtype)?;
        let Storage::Host(buffer) = &mut x.storage else { return Err(elsewhere(op)) };
        self.own(op, buffer)?;
        Ok(Arc::get_mut(buffer).ok_or(TensorError::Shared { op })?.bytes_mut())
    }

    fn own(&self, op: &'static str, buffer: &HostBuffer) -> Result<()> {
        if buffer.is_from(&self.pool) {
            return Ok(());
        }
        Err(TensorError::Device { op, expected: "this cpu device".into(), got: "another cpu device".into() })
    }

    pub(crate) fn f32<'a>(&self, op: &'static str, x: &'a Tensor) -> Result<&'a [f32]> {
        Ok(bytemuck::cast_slice(self.bytes(op, x, DType::F32)?))
    }

    /// # Errors
    /// [`TensorError::Shared`] where another tensor has the same storage.
    pub(crate) fn f32_mut<'a>(&self, op: &'static str, x: &'a mut Tensor) -> Result<&'a mut [f32]> {
        Ok(bytemuck::cast_slice_mut(self.bytes_mut(op, x, DType::F32)?))
    }

    pub(crate) fn u8<'a>(&self, op: &'static str, x: &'a Tensor) -> Result<&'a [u8]> {
        self.bytes(op, x, DType::U8)
    }

    pub(crate) fn bf16<'a>(&self, op: &'static str, x: &'a Tensor) -> Result<&'a [half::bf16]> {
        Ok(bytemuck::cast_slice(self.bytes(op, x, DType::Bf16)?))
    }
}

pub(crate) fn elsewhere(op: &'static str) -> TensorError {
    TensorError::Device { op, expected: "cpu".into(), got: "another device".into() }
}

/// Elements of an elementwise piece: 64 KiB of f32, a part of the second-level
/// cache.
pub(crate) const PIECE: usize = 1 << 14;

/// Rows that make up about one piece.
pub(crate) fn piece_rows(columns: usize) -> usize {
    (PIECE / columns.max(1)).max(1)
}
