//! Layer normalisation (Ba, Kiros and Hinton, 2016), for GPT-2.
//!
//! `y = (x − mean) · rstd · w + b` over rows of `w.len()` elements, with the
//! biased variance. Statistics are `[rows, 2]`: mean and rstd. Backward, with
//! `g = dy · w` and `n = (x − mean) · rstd`:
//! `dx = rstd · (g − mean(g) − n · mean(g · n))`.

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
    /// (x − mean)/std · w + b. Returns y and `[rows, 2]` of mean and 1/std.
    pub fn layer_norm(&self, x: &Tensor, w: &Tensor, b: &Tensor, epsilon: f32) -> Result<(Tensor, Tensor)> {
        self.timed(Operation::LayerNorm, || match self.backend() {
            Backend::Cpu(cpu) => cpu::forward(cpu, x, w, b, epsilon),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::forward(gpu, x, w, b, epsilon),
            Backend::Counting(count) => {
                w.expect_shape("layer_norm", &[x.columns()])?;
                Ok((count.f32("layer_norm", x.shape())?, count.f32("layer_norm", &[x.rows(), 2])?))
            }
        })
    }

    pub fn layer_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        w: &Tensor,
        statistics: &Tensor,
        into: Option<Tensor>,
        dwb: Option<(&mut Tensor, &mut Tensor)>,
    ) -> Result<Tensor> {
        self.timed(Operation::LayerNormBackward, || match self.backend() {
            Backend::Cpu(cpu) => cpu::backward(cpu, dy, x, w, statistics, into, dwb),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::backward(gpu, dy, x, w, statistics, into, dwb),
            Backend::Counting(count) => {
                dy.expect_shape("layer_norm_backward", x.shape())?;
                count.accumulator("layer_norm_backward", x.shape(), into)
            }
        })
    }
}
