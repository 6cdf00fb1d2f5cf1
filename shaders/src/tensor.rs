//! Tensors: contiguous, row-major, typed, reference-counted storage on one
//! device.

use std::sync::Arc;

use crate::cpu::HostBuffer;
use crate::error::{Result, TensorError, shape_error};
#[cfg(feature = "gpu")]
use crate::gpu::GpuBuffer;
use crate::ledger::Counted;

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    Bf16,
    F16,
    U32,
    /// Bytes of packed formats (NF4).
    U8,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::Bf16 | DType::F16 => 2,
            DType::U8 => 1,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::U32 => "u32",
            DType::U8 => "u8",
        }
    }
}

/// Where a tensor's bytes lie.
#[derive(Debug, Clone)]
pub(crate) enum Storage {
    Host(Arc<HostBuffer>),
    /// Nowhere: only the bytes are known. They are given back when this is dropped.
    Counted(Arc<Counted>),
    #[cfg(feature = "gpu")]
    Gpu(Arc<GpuBuffer>),
}

/// A contiguous, row-major array.
///
/// Cloning shares the storage; an operation that writes in place refuses
/// storage that is shared ([`TensorError::Shared`]).
#[derive(Debug, Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    dtype: DType,
    pub(crate) storage: Storage,
}

impl Tensor {
    pub(crate) fn new(shape: &[usize], dtype: DType, storage: Storage) -> Tensor {
        Tensor { shape: shape.to_vec(), dtype, storage }
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.bytes()
    }

    /// Size of the last dimension.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// All elements over [`Tensor::columns`].
    pub fn rows(&self) -> usize {
        self.len().checked_div(self.columns()).unwrap_or(0)
    }

    /// The same storage under another shape of the same number of elements.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        let elements: usize = shape.iter().product();
        if elements != self.len() {
            return Err(shape_error("reshape", format!("{} elements", self.len()), format!("{shape:?}")));
        }
        Ok(Tensor { shape: shape.to_vec(), dtype: self.dtype, storage: self.storage.clone() })
    }

    /// As [`Tensor::reshape`], keeping sole ownership of the storage.
    pub fn into_shape(mut self, shape: &[usize]) -> Result<Tensor> {
        let elements: usize = shape.iter().product();
        if elements != self.len() {
            return Err(shape_error("into_shape", format!("{} elements", self.len()), format!("{shape:?}")));
        }
        self.shape = shape.to_vec();
        Ok(self)
    }

    /// The shape must be exactly this.
    pub fn expect_shape(&self, op: &'static str, shape: &[usize]) -> Result<()> {
        if self.shape != shape {
            return Err(shape_error(op, format!("{shape:?}"), format!("{:?}", self.shape)));
        }
        Ok(())
    }

    pub(crate) fn expect_type(&self, op: &'static str, dtype: DType) -> Result<()> {
        if self.dtype != dtype {
            return Err(TensorError::Type { op, expected: dtype.name(), got: self.dtype.name() });
        }
        Ok(())
    }
}

/// A tensor's values on their way to the host: calling it waits for them.
pub type Reading<'a> = Box<dyn FnOnce() -> Result<Vec<f32>> + Send + 'a>;
