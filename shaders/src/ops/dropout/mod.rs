//! Inverted dropout (Srivastava et al., 2014) with a mask that is a pure
//! function of a key and the element's place.
//!
//! Element i is dropped when number i of the key's uniform stream is below p.
//! The backward pass is the forward pass on dy with the same key.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;

use crate::error::{Result, shape_error};

/// A probability below 1; NaN is none.
pub(crate) fn check(p: f32) -> Result<()> {
    if (0.0..1.0).contains(&p) {
        return Ok(());
    }
    Err(shape_error("dropout", "a probability in [0, 1)", p.to_string()))
}
