//! One unit an element.

use cubecl::prelude::*;

use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops::Activation;
use crate::tensor::Tensor;

const TWO_OVER_ROOT_PI: f32 = std::f32::consts::FRAC_2_SQRT_PI;
const HALF_ROOT: f32 = std::f32::consts::FRAC_1_SQRT_2;
/// √(2/π), of GELU's tanh form.
const ROOT_TWO_OVER_PI: f32 = 0.797_884_6;
/// 1/√(2π), the normal density's factor.
const DENSITY: f32 = 0.398_942_3;

/// tanh whose exponentials cannot overflow; NaN stays NaN.
#[cube]
pub(crate) fn safe_tanh(x: f32) -> f32 {
    // Beyond 10, tanh is 1 to the last bit of an f32.
    let upper = select(x > 10.0f32, 10.0f32, x);
    let bounded = select(x < -10.0f32, -10.0f32, upper);
    bounded.tanh()
}

/// erf to 1.2e-7 of its own size or better (Numerical Recipes' erfc by a
/// Chebyshev fit; the series where |x| is small), since WGSL has none.
#[cube]
fn error_function(x: f32) -> f32 {
    let size = x.abs();
    if size < 0.5f32 {
        let square = x * x;
        x * (TWO_OVER_ROOT_PI
            + square
                * (-0.376_126_4f32
                    + square
                        * (0.112_837_92f32
                            + square
                                * (-0.026_866_17f32 + square * (0.005_223_977_6f32 - square * 0.000_854_832_7f32)))))
    } else {
        let t = 1.0f32 / (1.0f32 + 0.5f32 * size);
        let polynomial = -1.265_512_2f32
            + t * (1.000_023_7f32
                + t * (0.374_091_96f32
                    + t * (0.096_784_18f32
                        + t * (-0.186_288_06f32
                            + t * (0.278_868_07f32
                                + t * (-1.135_204f32
                                    + t * (1.488_515_9f32 + t * (-0.822_152_2f32 + t * 0.170_872_77f32))))))));
        let tail = t * (polynomial - size * size).exp();
        select(x < 0.0f32, tail - 1.0f32, 1.0f32 - tail)
    }
}

/// act(x).
#[cube]
fn value(x: f32, #[comptime] kind: Activation) -> f32 {
    match comptime!(kind) {
        Activation::Silu => x / (1.0f32 + (-x).exp()),
        Activation::GeluTanh => 0.5f32 * x * (1.0f32 + safe_tanh(ROOT_TWO_OVER_PI * (x + 0.044_715f32 * x * x * x))),
        Activation::Gelu => 0.5f32 * x * (1.0f32 + error_function(x * HALF_ROOT)),
    }
}

/// d act / d x.
#[cube]
fn slope(x: f32, #[comptime] kind: Activation) -> f32 {
    match comptime!(kind) {
        Activation::Silu => {
            let s = 1.0f32 / (1.0f32 + (-x).exp());
            s * (1.0f32 + x * (1.0f32 - s))
        }
        Activation::GeluTanh => {
            let t = safe_tanh(ROOT_TWO_OVER_PI * (x + 0.044_715f32 * x * x * x));
            0.5f32 * (1.0f32 + t) + 0.5f32 * x * (1.0f32 - t * t) * ROOT_TWO_OVER_PI * (1.0f32 + 0.134_145f32 * x * x)
        }
        Activation::Gelu => {
            let density = DENSITY * (-0.5f32 * x * x).exp();
            0.5f32 * (1.0f32 + error_function(x * HALF_ROOT)) + x * density
        }
    }
}

#[cube(launch)]
fn gated_kernel(gate: &[f32], up: &[f32], y: &mut [f32], #[comptime] kind: Activation) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] = value(gate[ABSOLUTE_POS], kind) * up[ABSOLUTE_POS];
    }
}

#[cube(launch)]
fn gated_backward_kernel(
    dy: &[f32],
    gate: &[f32],
    up: &[f32],
    dgate: &mut [f32],
    dup: &mut [f32],
    #[comptime] kind: Activation,
) {
    if ABSOLUTE_POS < dgate.len() {
        let (d, g) = (dy[ABSOLUTE_POS], gate[ABSOLUTE_POS]);
        dgate[ABSOLUTE_POS] = d * up[ABSOLUTE_POS] * slope(g, kind);
        dup[ABSOLUTE_POS] = d * value(g, kind);
    }
}

#[cube(launch)]
fn activation_kernel(x: &[f32], y: &mut [f32], #[comptime] kind: Activation) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] = value(x[ABSOLUTE_POS], kind);
    }
}

#[cube(launch)]
fn activation_backward_kernel(dy: &[f32], x: &[f32], dx: &mut [f32], #[comptime] kind: Activation) {
    if ABSOLUTE_POS < dx.len() {
        dx[ABSOLUTE_POS] = dy[ABSOLUTE_POS] * slope(x[ABSOLUTE_POS], kind);
    }
}

pub(crate) fn gated(gpu: &Gpu, gate: &Tensor, up: &Tensor, kind: Activation) -> Result<Tensor> {
    const OP: &str = "gated";
    up.expect_shape(OP, gate.shape())?;
    let mut y = gpu.empty_f32(OP, gate.shape())?;
    if !y.is_empty() {
        let (count, dim) = gpu.elementwise(y.len());
        let (gate, up) = (gpu.input_f32(OP, gate)?, gpu.input_f32(OP, up)?);
        gated_kernel::launch(gpu.client(), count, dim, gate, up, gpu.output_f32(OP, &mut y)?, kind);
    }
    Ok(y)
}

pub(crate) fn gated_backward(
    gpu: &Gpu,
    dy: &Tensor,
    gate: &Tensor,
    up: &Tensor,
    kind: Activation,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "gated_backward";
    up.expect_shape(OP, gate.shape())?;
    dy.expect_shape(OP, gate.shape())?;
    let (mut dgate, mut dup) = (gpu.empty_f32(OP, gate.shape())?, gpu.empty_f32(OP, gate.shape())?);
    if !dy.is_empty() {
        let (count, dim) = gpu.elementwise(dy.len());
        let (dy, gate, up) = (gpu.input_f32(OP, dy)?, gpu.input_f32(OP, gate)?, gpu.input_f32(OP, up)?);
        let (left, right) = (gpu.output_f32(OP, &mut dgate)?, gpu.output_f32(OP, &mut dup)?);
        gated_backward_kernel::launch(gpu.client(), count, dim, dy, gate, up, left, right, kind);
    }
    Ok((dgate, dup))
}

pub(crate) fn activation(gpu: &Gpu, x: &Tensor, kind: Activation) -> Result<Tensor> {
    const OP: &str = "activation";
    let mut y = gpu.empty_f32(OP, x.shape())?;
    if !y.is_empty() {
        let (count, dim) = gpu.elementwise(y.len());
        activation_kernel::launch(gpu.client(), count, dim, gpu.input_f32(OP, x)?, gpu.output_f32(OP, &mut y)?, kind);
    }
    Ok(y)
}

pub(crate) fn activation_backward(gpu: &Gpu, dy: &Tensor, x: &Tensor, kind: Activation) -> Result<Tensor> {
    const OP: &str = "activation_backward";
    dy.expect_shape(OP, x.shape())?;
    let mut dx = gpu.empty_f32(OP, x.shape())?;
    if !dx.is_empty() {
        let (count, dim) = gpu.elementwise(dx.len());
        let (dy, x) = (gpu.input_f32(OP, dy)?, gpu.input_f32(OP, x)?);
        activation_backward_kernel::launch(gpu.client(), count, dim, dy, x, gpu.output_f32(OP, &mut dx)?, kind);
    }
    Ok(dx)
}
