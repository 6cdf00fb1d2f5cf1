//! The definition, in f64.

use crate::ops::Activation;

/// act(x) and its derivative.
pub fn activation(x: f32, activation: Activation) -> (f32, f32) {
    let x = f64::from(x);
    let (y, slope) = match activation {
        Activation::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            (x * s, s * (1.0 + x * (1.0 - s)))
        }
        Activation::GeluTanh => {
            let k = (2.0 / std::f64::consts::PI).sqrt();
            let t = (k * (x + 0.044715 * x * x * x)).tanh();
            let slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * k * (1.0 + 3.0 * 0.044715 * x * x);
            (0.5 * x * (1.0 + t), slope)
        }
        Activation::Gelu => {
            let cdf = 0.5 * (1.0 + libm::erf(x / std::f64::consts::SQRT_2));
            let pdf = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
            (x * cdf, cdf + x * pdf)
        }
    };
    (y as f32, slope as f32)
}

/// act(gate) · up.
pub fn gated(gate: &[f32], up: &[f32], kind: Activation) -> Vec<f32> {
    gate.iter().zip(up).map(|(gate, up)| activation(*gate, kind).0 * up).collect()
}

/// (dgate, dup).
pub fn gated_backward(dy: &[f32], gate: &[f32], up: &[f32], kind: Activation) -> (Vec<f32>, Vec<f32>) {
    (0..dy.len())
        .map(|i| {
            let (y, slope) = activation(gate[i], kind);
            (dy[i] * up[i] * slope, dy[i] * y)
        })
        .unzip()
}
