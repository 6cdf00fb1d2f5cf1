//! A device that has shapes and no values: what a step would allocate and compute.
//!
//! Every operation checks what it must know of its arguments, takes the bytes of its
//! result and of its temporaries from a ledger, and adds its floating-point operations.
//! The device that is imitated says which temporaries it makes. A run's real model can
//! so go through a real step in milliseconds, whatever its size.

pub(crate) mod ledger;
mod ops;

use std::sync::{Arc, Mutex, PoisonError};

use self::ledger::{Counted, Ledger};
use crate::error::{Result, TensorError, shape_error};
use crate::ops::{Head, Ops, StatisticSet, TokenStatistics, Weight};
use crate::tensor::{DType, Storage, Tensor};

/// A device without values.
pub struct Counting {
    /// The device whose temporaries are imitated.
    like: Arc<dyn Ops>,
    ledger: Arc<Ledger>,
    /// Floating-point operations since they were last taken.
    flops: Mutex<f64>,
}

impl Counting {
    /// A counting device in the place of this one.
    pub fn new(like: Arc<dyn Ops>) -> Counting {
        Counting { like, ledger: Arc::default(), flops: Mutex::new(0.0) }
    }

    /// Floating-point operations of matrix products and attention since the last call.
    pub fn take_flops(&self) -> f64 {
        std::mem::take(&mut *self.flops.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add_flops(&self, flops: f64) {
        *self.flops.lock().unwrap_or_else(PoisonError::into_inner) += flops;
    }

    fn owns(&self, counted: &Counted) -> bool {
        counted.is_of(&self.ledger)
    }

    /// Refuses a tensor of another device.
    fn own(&self, op: &'static str, x: &Tensor) -> Result<()> {
        match &x.storage {
            Storage::Counted(counted) if self.owns(counted) => Ok(()),
            _ => Err(self.elsewhere(op)),
        }
    }

    fn elsewhere(&self, op: &'static str) -> TensorError {
        TensorError::Device { op, expected: "this counting device".into(), got: "another device".into() }
    }

    fn scratch(&self, bytes: u64) -> Counted {
        Counted::new(bytes, &self.ledger)
    }

    fn take(&self, op: &'static str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let bytes = shape.iter().try_fold(dtype.bytes(), |bytes, size| bytes.checked_mul(*size));
        let device = || self.like.info().name;
        let bytes = bytes.ok_or_else(|| TensorError::Memory { op, bytes: usize::MAX, device: device() })?;
        let counted = Counted::new(self.like.tensor_bytes(bytes as u64), &self.ledger);
        Ok(Tensor::new(shape, dtype, Storage::Counted(Arc::new(counted))))
    }

    fn f32(&self, op: &'static str, shape: &[usize]) -> Result<Tensor> {
        self.take(op, shape, DType::F32)
    }

    /// What a backward pass adds to, or a new tensor.
    fn accumulator(&self, op: &'static str, shape: &[usize], into: Option<Tensor>) -> Result<Tensor> {
        match into {
            Some(into) => into.expect_shape(op, shape).map(|()| into),
            None => self.f32(op, shape),
        }
    }

    /// A product `[m, n]` over `k`, added to `into`.
    fn product(&self, op: &'static str, (m, k, n): (usize, usize, usize), into: Option<Tensor>) -> Result<Tensor> {
        self.add_flops(2.0 * m as f64 * k as f64 * n as f64);
        if !self.like.adds_apart() {
            return self.accumulator(op, &[m, n], into);
        }
        // Both operands rounded to 16 bits, and a result that is added afterwards.
        let _operands = self.scratch(2 * (m * k + k * n) as u64);
        let result = self.f32(op, &[m, n])?;
        match into {
            Some(into) => into.expect_shape(op, &[m, n]).map(|()| into),
            None => Ok(result),
        }
    }

    /// The values of a weight that is not kept in f32, for the length of a product.
    fn unpacked(&self, w: &Weight) -> Result<Option<Counted>> {
        let (outputs, inputs) = crate::ops::linear::weight_shape("unpack", w)?;
        let dense = matches!(w, Weight::Dense(tensor) if tensor.dtype() == DType::F32);
        Ok((!dense).then(|| self.scratch(self.like.unpacked_bytes(outputs, inputs))))
    }

    /// The memory of the head's chunks, and (M, V, C).
    fn head(&self, op: &'static str, h: &Tensor, head: &Head, targets: &[u32]) -> Result<(Vec<Counted>, f64)> {
        let (m, v, c) = crate::ops::token_logp::check_head(op, h, head)?;
        if targets.len() != m {
            return Err(shape_error(op, format!("{m} targets"), targets.len().to_string()));
        }
        let mut held = vec![self.scratch(self.like.head_bytes(m, v, c))];
        held.extend(self.unpacked(head.weight)?);
        Ok((held, 2.0 * m as f64 * v as f64 * c as f64))
    }

    /// Statistics of tokens of probability 1/e.
    fn statistics(rows: usize, want: StatisticSet) -> TokenStatistics {
        let optional = |wanted: bool, value: f32| if wanted { vec![value; rows] } else { Vec::new() };
        TokenStatistics {
            logp: vec![-1.0; rows],
            lse: vec![0.0; rows],
            entropy: optional(want.entropy, 1.0),
            mean_logp: optional(want.mean_logp, -1.0),
            correct: if want.correct { vec![false; rows] } else { Vec::new() },
        }
    }
}
