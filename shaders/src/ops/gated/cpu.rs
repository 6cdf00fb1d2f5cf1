//! Elementwise, vectorised; one loop per nonlinearity, so that the choice
//! is made once and not per element.

use crate::cpu::{Cpu, PIECE, simd};
use crate::error::Result;
use crate::ops::Activation;
use crate::tensor::Tensor;

/// A nonlinearity and its derivative, as the compiler can inline it.
trait Curve: Sync {
    /// act(x).
    fn value(x: f32) -> f32;
    /// act(x) and act'(x).
    fn slope(x: f32) -> (f32, f32);
}

struct Silu;
struct GeluTanh;
struct Gelu;

impl Curve for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * simd::sigmoid(x)
    }

    #[inline(always)]
    fn slope(x: f32) -> (f32, f32) {
        let s = simd::sigmoid(x);
        let y = x * s;
        // s (1 + x (1 − s)) = s + y (1 − s)
        (y, (1.0 - s).mul_add(y, s))
    }
}

/// √(2/π).
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

impl Curve for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        let t = simd::tanh(GELU_SCALE * (GELU_CUBIC * x * x).mul_add(x, x));
        0.5 * x * (1.0 + t)
    }

    #[inline(always)]
    fn slope(x: f32) -> (f32, f32) {
        let t = simd::tanh(GELU_SCALE * (GELU_CUBIC * x * x).mul_add(x, x));
        let half = 0.5 * (1.0 + t);
        let inner = GELU_SCALE * (3.0 * GELU_CUBIC * x * x + 1.0);
        (x * half, (0.5 * x * (1.0 - t * t)).mul_add(inner, half))
    }
}

impl Curve for Gelu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        0.5 * x * (1.0 + simd::erf(x * std::f32::consts::FRAC_1_SQRT_2))
    }

    #[inline(always)]
    fn slope(x: f32) -> (f32, f32) {
        let cdf = 0.5 * (1.0 + simd::erf(x * std::f32::consts::FRAC_1_SQRT_2));
        let pdf = 0.398_942_3 * simd::exp(-0.5 * x * x);
        (x * cdf, x.mul_add(pdf, cdf))
    }
}

fn gated_pieces<C: Curve>(cpu: &Cpu, y: &mut [f32], gate: &[f32], up: &[f32]) {
    let pieces = y.chunks_mut(PIECE).zip(gate.chunks(PIECE)).zip(up.chunks(PIECE));
    cpu.workers.each(pieces, |((y, gate), up)| {
        simd::dispatch(
            #[inline(always)]
            || {
                for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                    *y = C::value(*gate) * up;
                }
            },
        );
    });
}

fn gated_slopes<C: Curve>(cpu: &Cpu, dgate: &mut [f32], dup: &mut [f32], dy: &[f32], gate: &[f32], up: &[f32]) {
    let pieces = dgate
        .chunks_mut(PIECE)
        .zip(dup.chunks_mut(PIECE))
        .zip(dy.chunks(PIECE))
        .zip(gate.chunks(PIECE))
        .zip(up.chunks(PIECE));
    cpu.workers.each(pieces, |((((dgate, dup), dy), gate), up)| {
        simd::dispatch(
            #[inline(always)]
            || {
                for ((((dgate, dup), dy), gate), up) in dgate.iter_mut().zip(dup).zip(dy).zip(gate).zip(up) {
                    let (value, slope) = C::slope(*gate);
                    *dgate = dy * up * slope;
                    *dup = dy * value;
                }
            },
        );
    });
}

fn plain_pieces<C: Curve>(cpu: &Cpu, y: &mut [f32], x: &[f32]) {
    cpu.workers.each(y.chunks_mut(PIECE).zip(x.chunks(PIECE)), |(y, x)| {
        simd::dispatch(
            #[inline(always)]
            || {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = C::value(*x);
                }
            },
        );
    });
}

fn plain_slopes<C: Curve>(cpu: &Cpu, dx: &mut [f32], dy: &[f32], x: &[f32]) {
    cpu.workers.each(dx.chunks_mut(PIECE).zip(dy.chunks(PIECE)).zip(x.chunks(PIECE)), |((dx, dy), x)| {
        simd::dispatch(
            #[inline(always)]
            || {
                for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
                    *dx = dy * C::slope(*x).1;
                }
            },
        );
    });
}

pub(crate) fn gated(cpu: &Cpu, gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    const OP: &str = "gated";
    up.expect_shape(OP, gate.shape())?;
    let mut y = cpu.empty_f32(OP, gate.shape())?;
    let out = cpu.f32_mut(OP, &mut y)?;
    let (gate, up) = (cpu.f32(OP, gate)?, cpu.f32(OP, up)?);
    match activation {
        Activation::Silu => gated_pieces::<Silu>(cpu, out, gate, up),
        Activation::GeluTanh => gated_pieces::<GeluTanh>(cpu, out, gate, up),
        Activation::Gelu => gated_pieces::<Gelu>(cpu, out, gate, up),
    }
    Ok(y)
}

pub(crate) fn gated_backward(
    cpu: &Cpu,
    dy: &Tensor,
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "gated_backward";
    up.expect_shape(OP, gate.shape())?;
    dy.expect_shape(OP, gate.shape())?;
    let mut dgate = cpu.empty_f32(OP, gate.shape())?;
    let mut dup = cpu.empty_f32(OP, gate.shape())?;
    {
        let (dgate, dup) = (cpu.f32_mut(OP, &mut dgate)?, cpu.f32_mut(OP, &mut dup)?);
        let (dy, gate, up) = (cpu.f32(OP, dy)?, cpu.f32(OP, gate)?, cpu.f32(OP, up)?);
        match activation {
            Activation::Silu => gated_slopes::<Silu>(cpu, dgate, dup, dy, gate, up),
            Activation::GeluTanh => gated_slopes::<GeluTanh>(cpu, dgate, dup, dy, gate, up),
            Activation::Gelu => gated_slopes::<Gelu>(cpu, dgate, dup, dy, gate, up),
        }
    }
    Ok((dgate, dup))
}

pub(crate) fn activation(cpu: &Cpu, x: &Tensor, activation: Activation) -> Result<Tensor> {
    const OP: &str = "activation";
    let mut y = cpu.empty_f32(OP, x.shape())?;
    let out = cpu.f32_mut(OP, &mut y)?;
    let x = cpu.f32(OP, x)?;
    match activation {
        Activation::Silu => plain_pieces::<Silu>(cpu, out, x),
        Activation::GeluTanh => plain_pieces::<GeluTanh>(cpu, out, x),
        Activation::Gelu => plain_pieces::<Gelu>(cpu, out, x),
    }
    Ok(y)
}

pub(crate) fn activation_backward(cpu: &Cpu, dy: &Tensor, x: &Tensor, activation: Activation) -> Result<Tensor> {
    const OP: &str = "activation_backward";
    dy.expect_shape(OP, x.shape())?;
    let mut dx = cpu.empty_f32(OP, x.shape())?;
    let out = cpu.f32_mut(OP, &mut dx)?;
    let (dy, x) = (cpu.f32(OP, dy)?, cpu.f32(OP, x)?);
    match activation {
        Activation::Silu => plain_slopes::<Silu>(cpu, out, dy, x),
        Activation::GeluTanh => plain_slopes::<GeluTanh>(cpu, out, dy, x),
        Activation::Gelu => plain_slopes::<Gelu>(cpu, out, dy, x),
    }
    Ok(dx)
}
