//! Token embeddings: rows of a table, times a factor (√C for Gemma).
//!
//! ids `[N]`, table `[V, C]` (f32 or bf16), y `[N, C]`.

pub(crate) mod conformance;
pub(crate) mod cpu;
pub mod reference;
#[cfg(test)]
mod tests;
use super::{Device, Operation, device::Backend};
use crate::error::Result;
use crate::tensor::Tensor;

impl Device {
    /// Rows of `table [V, C]` times `scale`.
    pub fn embedding(&self, ids: &[u32], table: &Tensor, scale: f32) -> Result<Tensor> {
        self.timed(Operation::Embedding, || match self.backend() {
            Backend::Cpu(cpu) => cpu::forward(cpu, ids, table, scale),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => super::gather::kernel::rows(gpu, "embedding", table, ids, scale),
            Backend::Counting(count) => count.f32("embedding", &[ids.len(), table.columns()]),
        })
    }

    /// dtable[id] += scale · dy.
    pub fn embedding_backward(&self, ids: &[u32], dy: &Tensor, scale: f32, dtable: &mut Tensor) -> Result<()> {
        self.timed(Operation::EmbeddingBackward, || match self.backend() {
            Backend::Cpu(cpu) => cpu::backward(cpu, ids, dy, scale, dtable),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => super::gather::kernel::add_rows(gpu, "embedding_backward", ids, dy, scale, dtable),
            Backend::Counting(_) => dy.expect_shape("embedding_backward", &[ids.len(), dtable.columns()]),
        })
    }
}
