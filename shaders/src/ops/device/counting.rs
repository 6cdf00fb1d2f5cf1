//! A device that has shapes and no values: what a step would allocate and compute.
//!
//! Every operation takes the bytes of its result and of its temporaries from a ledger and
//! adds its floating-point operations; it says so in its own folder. The device that is
//! imitated says which temporaries it makes. A run's real model can so go through a real
//! step in milliseconds, whatever its size.

use std::sync::{Arc, Mutex, PoisonError};

use super::Device;
use crate::error::{Result, TensorError};
use crate::ledger::{Counted, Ledger};
use crate::tensor::{DType, Storage, Tensor};

/// A device without values.
pub struct Counting {
    /// The device whose temporaries are imitated.
    pub(crate) like: Device,
    pub(crate) ledger: Arc<Ledger>,
    /// Floating-point operations since they were last taken.
    flops: Mutex<f64>,
}

impl Counting {
    /// A counting device in the place of this one.
    pub fn new(like: Device) -> Counting {
        Counting { like, ledger: Arc::default(), flops: Mutex::new(0.0) }
    }

    /// Floating-point operations of matrix products and attention since the last call.
    pub fn take_flops(&self) -> f64 {
        std::mem::take(&mut *self.flops.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn add_flops(&self, flops: f64) {
        *self.flops.lock().unwrap_or_else(PoisonError::into_inner) += flops;
    }

    pub(crate) fn owns(&self, counted: &Counted) -> bool {
        counted.is_of(&self.ledger)
    }

    /// Refuses a tensor of another device.
    pub(crate) fn own(&self, op: &'static str, x: &Tensor) -> Result<()> {
        match &x.storage {
            Storage::Counted(counted) if self.owns(counted) => Ok(()),
            _ => Err(self.elsewhere(op)),
        }
    }

    pub(crate) fn elsewhere(&self, op: &'static str) -> TensorError {
        TensorError::Device { op, expected: "this counting device".into(), got: "another device".into() }
    }

    pub(crate) fn scratch(&self, bytes: u64) -> Counted {
        Counted::new(bytes, &self.ledger)
    }

    pub(crate) fn take(&self, op: &'static str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let bytes = shape.iter().try_fold(dtype.bytes(), |bytes, size| bytes.checked_mul(*size));
        let device = || self.like.info().name;
        let bytes = bytes.ok_or_else(|| TensorError::Memory { op, bytes: usize::MAX, device: device() })?;
        let counted = Counted::new(self.like.tensor_bytes(bytes as u64), &self.ledger);
        Ok(Tensor::new(shape, dtype, Storage::Counted(Arc::new(counted))))
    }

    pub(crate) fn f32(&self, op: &'static str, shape: &[usize]) -> Result<Tensor> {
        self.take(op, shape, DType::F32)
    }

    /// What a backward pass adds to, or a new tensor.
    pub(crate) fn accumulator(&self, op: &'static str, shape: &[usize], into: Option<Tensor>) -> Result<Tensor> {
        match into {
            Some(into) => into.expect_shape(op, shape).map(|()| into),
            None => self.f32(op, shape),
        }
    }
}
