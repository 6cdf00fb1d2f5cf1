//! The definition, in plain loops.

use crate::random::{Key, signed_unit};

/// The elements before they are rounded or quantised.
pub fn uniform(elements: usize, scale: f32, key: Key) -> Vec<f32> {
    (0..elements as u64).map(|i| scale * signed_unit(key.word(i))).collect()
}
