//! Taking rows out of a matrix, putting them back, and writing rows into a
//! cache.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;

use crate::error::{Result, TensorError, shape_error};
use crate::tensor::Tensor;

/// Every index must name a row.
pub(crate) fn check_indices(op: &'static str, indices: &[u32], rows: usize) -> Result<()> {
    match indices.iter().find(|index| **index as usize >= rows) {
        Some(index) => Err(TensorError::Index { op, index: *index as usize, rows }),
        None => Ok(()),
    }
}

/// One row of `dy` for each index.
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
