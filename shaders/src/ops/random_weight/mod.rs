//! Weights that no checkpoint has: what a benchmark of a shape trains.
//!
//! Element i is `scale · s`, where s is 24 bits of word i of the key's Philox
//! stream as a number in [−1, 1). The integer becomes a float exactly and is
//! rounded once, in the product with the scale, so every device has the same bits.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;

use super::{Device, Operation, Weight, WeightKind, device::Backend, nf4::count_nf4};
use crate::error::{Result, shape_error};
use crate::random::Key;
use crate::tensor::DType;

impl Device {
    /// A weight that no checkpoint has, made on the device: uniform numbers in
    /// [−scale, scale), element i from word i of the key's stream. They are the same
    /// on every device, and are then rounded or quantised as an upload's.
    pub fn random_weight(&self, shape: &[usize], scale: f32, key: Key, kind: WeightKind) -> Result<Weight> {
        self.timed(Operation::RandomWeight, || match self.backend() {
            Backend::Cpu(cpu) => cpu::random_weight(cpu, shape, scale, key, kind),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::random_weight(gpu, shape, scale, key, kind),
            Backend::Counting(count) => {
                const OP: &str = "random_weight";
                match kind {
                    WeightKind::F32 => Ok(Weight::Dense(count.f32(OP, shape)?)),
                    WeightKind::Bf16 => Ok(Weight::Dense(count.take(OP, shape, DType::Bf16)?)),
                    WeightKind::Nf4 { double_quant } => count_nf4(count, shape, double_quant),
                }
            }
        })
    }
}

/// A matrix, and a finite scale.
pub(crate) fn check(shape: &[usize], scale: f32) -> Result<()> {
    if shape.len() != 2 || !scale.is_finite() {
        return Err(shape_error(
            "random_weight",
            "a weight [out, in] of finite numbers",
            format!("{shape:?}, {scale}"),
        ));
    }
    Ok(())
}
