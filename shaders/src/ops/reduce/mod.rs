//! Σ x² over several tensors: the gradient norm.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;
use super::{Device, Operation, device::Backend};
use crate::error::Result;
use crate::tensor::Tensor;

impl Device {
    /// Σ x² over all the tensors, in f64 or compensated f32.
    pub fn sum_squares(&self, tensors: &[&Tensor]) -> Result<f64> {
        self.timed(Operation::SumSquares, || match self.backend() {
            Backend::Cpu(cpu) => cpu::sum_squares(cpu, tensors),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::sum_squares(gpu, tensors),
            Backend::Counting(_) => Ok(0.0),
        })
    }
}
