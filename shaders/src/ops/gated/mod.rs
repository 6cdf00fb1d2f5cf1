//! The MLP's nonlinearities: `act(gate) ⊙ up` (SwiGLU and GeGLU; Shazeer,
//! 2020) and the plain `act(x)` of GPT-2.

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

/// The gate's nonlinearity in a gated MLP, or the plain MLP's (GPT-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    Silu,
    /// The tanh form of GELU (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// The exact form, with erf.
    Gelu,
}

impl Device {
    /// act(gate) ⊙ up.
    pub fn gated(&self, gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
        self.timed(Operation::Gated, || match self.backend() {
            Backend::Cpu(cpu) => cpu::gated(cpu, gate, up, activation),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::gated(gpu, gate, up, activation),
            Backend::Counting(count) => {
                up.expect_shape("gated", gate.shape())?;
                count.f32("gated", gate.shape())
            }
        })
    }

    /// (dgate, dup).
    pub fn gated_backward(
        &self,
        dy: &Tensor,
        gate: &Tensor,
        up: &Tensor,
        activation: Activation,
    ) -> Result<(Tensor, Tensor)> {
        self.timed(Operation::GatedBackward, || match self.backend() {
            Backend::Cpu(cpu) => cpu::gated_backward(cpu, dy, gate, up, activation),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::gated_backward(gpu, dy, gate, up, activation),
            Backend::Counting(count) => {
                dy.expect_shape("gated_backward", gate.shape())?;
                Ok((count.f32("gated_backward", gate.shape())?, count.f32("gated_backward", gate.shape())?))
            }
        })
    }

    pub fn activation(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.timed(Operation::Activation, || match self.backend() {
            Backend::Cpu(cpu) => cpu::activation(cpu, x, activation),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::activation(gpu, x, activation),
            Backend::Counting(count) => count.f32("activation", x.shape()),
        })
    }

    pub fn activation_backward(&self, dy: &Tensor, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.timed(Operation::ActivationBackward, || match self.backend() {
            Backend::Cpu(cpu) => cpu::activation_backward(cpu, dy, x, activation),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::activation_backward(gpu, dy, x, activation),
            Backend::Counting(count) => {
                dy.expect_shape("activation_backward", x.shape())?;
                count.f32("activation_backward", x.shape())
            }
        })
    }
}
