//! Inverted dropout (Srivastava et al., 2014) with a mask that is a pure
//! function of a key and the element's place.
//!
//! Element i is dropped when number i of the key's uniform stream is below p.
//! The backward pass is the forward pass on dy with the same key.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;

use super::{Device, Operation, device::Backend};
use crate::error::{Result, shape_error};
use crate::random::Key;
use crate::tensor::Tensor;

impl Device {
    /// Inverted dropout: each element is zero with probability `p`, else
    /// x / (1 − p). The mask is a function of `key` and the element's place, so
    /// the backward pass calls this with the same key on dy.
    pub fn dropout(&self, x: &Tensor, p: f32, key: Key) -> Result<Tensor> {
        self.timed(Operation::Dropout, || match self.backend() {
            Backend::Cpu(cpu) => cpu::dropout(cpu, x, p, key),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::dropout(gpu, x, p, key),
            Backend::Counting(count) => count.f32("dropout", x.shape()),
        })
    }
}

/// A probability below 1; NaN is none.
pub(crate) fn check(p: f32) -> Result<()> {
    if (0.0..1.0).contains(&p) {
        return Ok(());
    }
    Err(shape_error("dropout", "a probability in [0, 1)", p.to_string()))
}
