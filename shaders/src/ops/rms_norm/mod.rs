//! Root-mean-square normalisation (Zhang and Sennrich, 2019).
//!
//! `y = x · rstd · (w + offset)` with `rstd = 1 / √(mean(x²) + ε)`, over groups
//! of `w.len()` elements: the residual stream, or each head (Qwen 3, Gemma 3).
//! The offset is 1 for Gemma. Backward, with `g = dy · (w + offset)`:
//! `dx = rstd · (g − x · rstd² · mean(g · x))`, `dw = Σ dy · x · rstd`.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;

use super::{Device, Operation, device::Backend};
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;

impl Device {
    /// x / rms(x) · (w + offset) over groups of `w.len()` elements; offset is 1
    /// for Gemma. Returns y and 1/rms per group `[rows]`.
    pub fn rms_norm(&self, x: &Tensor, w: &Tensor, epsilon: f32, offset: f32) -> Result<(Tensor, Tensor)> {
        self.timed(Operation::RmsNorm, || match self.backend() {
            Backend::Cpu(cpu) => cpu::forward(cpu, x, w, epsilon, offset),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::forward(gpu, x, w, epsilon, offset),
            Backend::Counting(count) => {
                let groups = x.len().checked_div(w.len()).unwrap_or(0);
                Ok((count.f32("rms_norm", x.shape())?, count.f32("rms_norm", &[groups])?))
            }
        })
    }

    /// dx (added to `into`), and dw += … where wanted.
    #[allow(clippy::too_many_arguments)]
    pub fn rms_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        w: &Tensor,
        rstd: &Tensor,
        offset: f32,
        into: Option<Tensor>,
        dw: Option<&mut Tensor>,
    ) -> Result<Tensor> {
        self.timed(Operation::RmsNormBackward, || match self.backend() {
            Backend::Cpu(cpu) => cpu::backward(cpu, dy, x, w, rstd, offset, into, dw),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::backward(gpu, dy, x, w, rstd, offset, into, dw),
            Backend::Counting(count) => {
                dy.expect_shape("rms_norm_backward", x.shape())?;
                count.accumulator("rms_norm_backward", x.shape(), into)
            }
        })
    }
}

/// The elements of x must be whole groups of `w`; gives the number of groups.
pub(crate) fn check(op: &'static str, x: &Tensor, w: &Tensor) -> Result<usize> {
    if w.is_empty() || !x.len().is_multiple_of(w.len()) {
        return Err(shape_error(op, format!("groups of {}", w.len()), format!("{:?}", x.shape())));
    }
    Ok(x.len() / w.len())
}
