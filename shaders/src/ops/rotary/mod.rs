//! Rotary position embeddings (Su et al., 2021), in the half-split form of
//! GPT-NeoX and Hugging Face: of a head's first `rotary_dim` elements, pair
//! (i, i + rotary_dim/2) turns by `position · frequency i`. The backward pass
//! turns the other way.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;

use super::{Device, Operation, device::Backend};
use crate::error::{Result, TensorError, shape_error};
use crate::tensor::Tensor;

/// The angle table of rotary embeddings, one per rope base of a model.
///
/// Angles are `position · inverse_frequency` in f32, as PyTorch computes them.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    /// `[max_positions, rotary_dim / 2]`, times the attention scaling.
    pub cos: Tensor,
    pub sin: Tensor,
    /// How many of a head's `D` elements turn; pairs are (i, i + rotary_dim/2).
    pub rotary_dim: usize,
}

impl Device {
    /// Turns x `[N, heads·D]` in place by each token's position; `inverse`
    /// turns back (the backward pass).
    pub fn rotary(
        &self,
        x: &mut Tensor,
        positions: &[u32],
        table: &RotaryTable,
        head_dim: usize,
        inverse: bool,
    ) -> Result<()> {
        self.timed(Operation::Rotary, || match self.backend() {
            Backend::Cpu(cpu) => cpu::rotary(cpu, x, positions, table, head_dim, inverse),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::rotary(gpu, x, positions, table, head_dim, inverse),
            Backend::Counting(_) => x.expect_shape("rotary", &[positions.len(), x.columns()]),
        })
    }
}

pub(crate) fn check(x: &Tensor, positions: &[u32], table: &RotaryTable, head_dim: usize) -> Result<()> {
    const OP: &str = "rotary";
    let half = table.rotary_dim / 2;
    if head_dim == 0 || !x.columns().is_multiple_of(head_dim) || x.rows() != positions.len() {
        let expected = format!("{} rows of heads of {head_dim}", positions.len());
        return Err(shape_error(OP, expected, format!("{:?}", x.shape())));
    }
    if half == 0 || !table.rotary_dim.is_multiple_of(2) || table.rotary_dim > head_dim || table.cos.columns() != half {
        let expected = format!("a table of {half} columns, at most {}", head_dim / 2);
        return Err(shape_error(OP, expected, format!("{:?}", table.cos.shape())));
    }
    table.sin.expect_shape(OP, table.cos.shape())?;
    let rows = table.cos.rows();
    match positions.iter().find(|position| **position as usize >= rows) {
        Some(position) => Err(TensorError::Index { op: OP, index: *position as usize, rows }),
        None => Ok(()),
    }
}
