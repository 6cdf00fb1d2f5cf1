//! Weights that no checkpoint has: what a benchmark of a shape trains.
//!
//! Element i is `scale · s`, where s is 24 bits of word i of the key's Philox
//! stream as a number in [−1, 1). The integer becomes a float exactly and is
//! rounded once, in the product with the scale, so every device has the same bits.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;

use crate::error::{Result, shape_error};

/// A matrix, and a finite scale.
pub(crate) fn check(shape: &[usize], scale: f32) -> Result<()> {
    if shape.len() != 2 || !scale.is_finite() {
        return Err(shape_error(
            "random_weight",
            "a weight [out, in] of finite numbers",
            format!("{shape:?}, {scale}"),
        ));
    }
    Ok(())
}
