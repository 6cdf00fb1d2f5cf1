//! The definition, in plain loops.

use crate::random::Key;

pub fn dropout(x: &[f32], p: f32, key: Key) -> Vec<f32> {
    let scale = 1.0 / (1.0 - p);
    x.iter().enumerate().map(|(i, x)| if key.uniform(i as u64) < p { 0.0 } else { x * scale }).collect()
}
