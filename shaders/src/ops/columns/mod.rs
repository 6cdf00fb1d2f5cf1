//! Operations between a matrix `[N, C]` and a vector `[C]` of its columns, and
//! cutting and joining columns.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;

use crate::error::{Result, shape_error};
use crate::tensor::Tensor;

/// The vector must have one element for each column of the matrix.
pub(crate) fn check_vector(op: &'static str, x: &Tensor, vector: &Tensor) -> Result<()> {
    if vector.len() != x.columns() {
        return Err(shape_error(op, format!("a vector of {} columns", x.columns()), format!("{:?}", vector.shape())));
    }
    Ok(())
}

/// The widths must add up to the columns of `x`.
pub(crate) fn check_widths(op: &'static str, x: &Tensor, widths: &[usize]) -> Result<()> {
    let total: usize = widths.iter().sum();
    if total != x.columns() || widths.contains(&0) {
        return Err(shape_error(op, format!("widths that add up to {}", x.columns()), format!("{widths:?}")));
    }
    Ok(())
}

/// The parts must have the same number of rows; gives that number and the
/// total width.
pub(crate) fn check_parts(op: &'static str, parts: &[&Tensor]) -> Result<(usize, usize)> {
    let rows = parts.first().map_or(0, |part| part.rows());
    if let Some(part) = parts.iter().find(|part| part.rows() != rows) {
        return Err(shape_error(op, format!("parts of {rows} rows"), format!("{:?}", part.shape())));
    }
    Ok((rows, parts.iter().map(|part| part.columns()).sum()))
}
