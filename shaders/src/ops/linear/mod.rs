//! Linear layers over weights `[out, in]` in any type: `y = x Wᵀ`,
//! `dx = dy W`, `dW = dyᵀ x`.
//!
//! A weight that is not f32 is unpacked a slab of rows at a time: the whole
//! weight in f32 never exists.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;
#[cfg(all(test, feature = "gpu"))]
mod tests_gpu;

use super::Weight;
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;

impl Weight {
    /// `[out, in]`.
    pub fn shape(&self) -> &[usize] {
        match self {
            Weight::Dense(tensor) => tensor.shape(),
            Weight::Nf4(weight) => weight.shape(),
        }
    }

    /// Bytes of storage.
    pub fn bytes(&self) -> usize {
        match self {
            Weight::Dense(tensor) => tensor.bytes(),
            Weight::Nf4(weight) => weight.bytes(),
        }
    }
}

/// (out, in) of a weight.
pub(crate) fn weight_shape(op: &'static str, w: &Weight) -> Result<(usize, usize)> {
    match *w.shape() {
        [rows, columns] => Ok((rows, columns)),
        ref other => Err(shape_error(op, "a weight [out, in]", format!("{other:?}"))),
    }
}

/// The columns of x must be `expected`.
pub(crate) fn check_columns(op: &'static str, x: &Tensor, expected: usize) -> Result<()> {
    if x.columns() != expected {
        return Err(shape_error(op, format!("{expected} columns"), format!("{:?}", x.shape())));
    }
    Ok(())
}

/// dw `[out, in]` of as many rows of dy as of x.
pub(crate) fn check_weight_backward(op: &'static str, dy: &Tensor, x: &Tensor, dw: &Tensor) -> Result<()> {
    if x.rows() != dy.rows() {
        return Err(shape_error(op, format!("{} rows of x", dy.rows()), format!("{:?}", x.shape())));
    }
    dw.expect_shape(op, &[dy.columns(), x.columns()])
}
