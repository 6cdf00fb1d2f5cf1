//! Sums, multiples and quotients of whole tensors.

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
    /// y += alpha · x.
    pub fn add_scaled(&self, y: &mut Tensor, x: &Tensor, alpha: f32) -> Result<()> {
        self.timed(Operation::AddScaled, || match self.backend() {
            Backend::Cpu(cpu) => cpu::add_scaled(cpu, y, x, alpha),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::add_scaled(gpu, y, x, alpha),
            Backend::Counting(_) => x.expect_shape("add_scaled", y.shape()),
        })
    }

    /// a + b in new storage.
    pub fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.timed(Operation::Add, || match self.backend() {
            Backend::Cpu(cpu) => cpu::add(cpu, a, b),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::add(gpu, a, b),
            Backend::Counting(count) => {
                b.expect_shape("add", a.shape())?;
                count.f32("add", a.shape())
            }
        })
    }

    /// a / b in new storage: DoRA's gain m / ‖W + s B A‖, and in its backward pass
    /// the magnitude's gradient.
    pub fn divide(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.timed(Operation::Divide, || match self.backend() {
            Backend::Cpu(cpu) => cpu::divide(cpu, a, b),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::divide(gpu, a, b),
            Backend::Counting(count) => {
                b.expect_shape("divide", a.shape())?;
                count.f32("divide", a.shape())
            }
        })
    }

    pub fn scale(&self, y: &mut Tensor, alpha: f32) -> Result<()> {
        self.timed(Operation::Scale, || match self.backend() {
            Backend::Cpu(cpu) => cpu::scale(cpu, y, alpha),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::scale(gpu, y, alpha),
            Backend::Counting(_) => Ok(()),
        })
    }

    pub fn fill_zero(&self, y: &mut Tensor) -> Result<()> {
        self.timed(Operation::FillZero, || match self.backend() {
            Backend::Cpu(cpu) => cpu::fill_zero(cpu, y),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::fill(gpu, "fill_zero", y, 0.0),
            Backend::Counting(_) => Ok(()),
        })
    }
}
