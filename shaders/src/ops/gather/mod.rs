//! Taking rows out of a matrix, putting them back, and writing rows into a
//! cache.

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

impl Device {
    /// Bytes of the lists of indices that lie on the device while micro-batches of so
    /// many tokens go through it.
    #[cfg_attr(not(feature = "gpu"), expect(clippy::only_used_in_recursion, reason = "only a GPU keeps lists"))]
    pub fn index_bytes(&self, tokens: usize) -> u64 {
        match self.backend() {
            Backend::Cpu(_) => 0,
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => gpu.kept_index_bytes(tokens) + kernel::sorted_index_bytes(tokens),
            Backend::Counting(count) => count.like.index_bytes(tokens),
        }
    }

    /// Rows of x `[N, C]` at `indices`, as `[M, C]`.
    pub fn gather_rows(&self, x: &Tensor, indices: &[u32]) -> Result<Tensor> {
        self.timed(Operation::GatherRows, || match self.backend() {
            Backend::Cpu(cpu) => cpu::gather_rows(cpu, x, indices),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::rows(gpu, "gather_rows", x, indices, 1.0),
            Backend::Counting(count) => count.f32("gather_rows", &[indices.len(), x.columns()]),
        })
    }

    /// A tensor of `rows` rows, zero but for `dy`'s rows at `indices` (repeated
    /// indices add up).
    pub fn scatter_rows(&self, rows: usize, indices: &[u32], dy: &Tensor) -> Result<Tensor> {
        self.timed(Operation::ScatterRows, || match self.backend() {
            Backend::Cpu(cpu) => cpu::scatter_rows(cpu, rows, indices, dy),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::scatter_rows(gpu, rows, indices, dy),
            Backend::Counting(count) => {
                dy.expect_shape("scatter_rows", &[indices.len(), dy.columns()])?;
                count.f32("scatter_rows", &[rows, dy.columns()])
            }
        })
    }

    /// Writes rows into a cache `[capacity, C]` from row `at` on.
    pub fn write_rows(&self, cache: &mut Tensor, at: usize, rows: &Tensor) -> Result<()> {
        self.timed(Operation::WriteRows, || match self.backend() {
            Backend::Cpu(cpu) => cpu::write_rows(cpu, cache, at, rows),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::write_rows(gpu, cache, at, rows),
            Backend::Counting(_) => Ok(()),
        })
    }
}

/// Every index must name a row.
pub(crate) fn check_indices(op: &'static str, indices: &[u32], rows: usize) -> Result<()> {
    match indices.iter().find(|index| **index as usize >= rows) {
        Some(index) => Err(TensorError::Index { op, index: *index as usize, rows }),
        None => Ok(()),
    }
}

/// One row of `dy` per index.
pub(crate) fn check_rows(op: &'static str, indices: &[u32], dy: &Tensor) -> Result<()> {
    if dy.rows() != indices.len() {
        return Err(shape_error(op, format!("{} rows", indices.len()), format!("{:?}", dy.shape())));
    }
    Ok(())
}

/// The rows must fit into the cache from row `at` on.
pub(crate) fn check_write(op: &'static str, cache: &Tensor, at: usize, rows: &Tensor) -> Result<()> {
    if rows.columns() != cache.columns() || at + rows.rows() > cache.rows() {
        let expected = format!("rows of {} within {}", cache.columns(), cache.rows());
        return Err(shape_error(op, expected, format!("{:?} at {at}", rows.shape())));
    }
    Ok(())
}

/// The indices in ascending order, each with its place; equal ones keep their
/// order, so that sums over them do too.
pub(crate) fn sorted(indices: &[u32]) -> Vec<(u32, u32)> {
    let mut order: Vec<(u32, u32)> = indices.iter().enumerate().map(|(place, index)| (*index, place as u32)).collect();
    order.sort_unstable();
    order
}

/// The part of a sorted list whose indices lie in `from..to`.
pub(crate) fn between(order: &[(u32, u32)], from: usize, to: usize) -> &[(u32, u32)] {
    let start = order.partition_point(|(index, _)| (*index as usize) < from);
    let end = order.partition_point(|(index, _)| (*index as usize) < to);
    &order[start..end]
}
