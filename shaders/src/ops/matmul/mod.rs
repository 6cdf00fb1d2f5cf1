//! Matrix products of tensors: `alpha · op(a) op(b)`.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;

use crate::error::{Result, shape_error};
use crate::tensor::Tensor;

/// (rows, depth, columns) of the product.
pub(crate) fn check(a: &Tensor, transpose_a: bool, b: &Tensor, transpose_b: bool) -> Result<(usize, usize, usize)> {
    let flip = |x: &Tensor, transpose: bool| {
        if transpose { (x.columns(), x.rows()) } else { (x.rows(), x.columns()) }
    };
    let ((rows, depth), (depth_b, columns)) = (flip(a, transpose_a), flip(b, transpose_b));
    if depth != depth_b {
        return Err(shape_error(
            "matmul",
            format!("the same depth on both sides of {rows}x{depth}"),
            format!("{depth_b}x{columns}"),
        ));
    }
    Ok((rows, depth, columns))
}
