//! The definition, in terms of the plain matrix product.

use crate::ops::matmul::reference::{matmul, transpose};

/// x `[n, in]` times the transpose of w `[out, in]`.
pub fn forward(x: &[f32], w: &[f32], n: usize, inputs: usize, outputs: usize) -> Vec<f32> {
    matmul(x, &transpose(w, outputs, inputs), n, inputs, outputs)
}

/// dy `[n, out]` times w `[out, in]`.
pub fn backward(dy: &[f32], w: &[f32], n: usize, inputs: usize, outputs: usize) -> Vec<f32> {
    matmul(dy, w, n, outputs, inputs)
}

/// dyᵀ x, `[out, in]`.
pub fn weight_backward(dy: &[f32], x: &[f32], n: usize, inputs: usize, outputs: usize) -> Vec<f32> {
    matmul(&transpose(dy, n, outputs), x, outputs, n, inputs)
}

/// Euclidean norm of each row of w + scale · b a.
pub fn dora_norm(w: &[f32], a: &[f32], b: &[f32], scale: f32, outputs: usize, inputs: usize) -> Vec<f32> {
    let rank = b.len() / outputs;
    let product = matmul(b, a, outputs, rank, inputs);
    (0..outputs)
        .map(|o| {
            let row = (0..inputs).map(|i| f64::from(w[o * inputs + i] + scale * product[o * inputs + i]));
            row.map(|v| v * v).sum::<f64>().sqrt() as f32
        })
        .collect()
}
