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

use crate::error::{Result, shape_error};
use crate::tensor::Tensor;

/// The elements of x must be whole groups of `w`; gives the number of groups.
pub(crate) fn check(op: &'static str, x: &Tensor, w: &Tensor) -> Result<usize> {
    if w.is_empty() || !x.len().is_multiple_of(w.len()) {
        return Err(shape_error(op, format!("groups of {}", w.len()), format!("{:?}", x.shape())));
    }
    Ok(x.len() / w.len())
}
