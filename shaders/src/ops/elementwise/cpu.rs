//! Pieces of a cache's size over the threads.

use crate::cpu::{Cpu, PIECE, simd};
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn add_scaled(cpu: &Cpu, y: &mut Tensor, x: &Tensor, alpha: f32) -> Result<()> {
    const OP: &str = "add_scaled";
    x.expect_shape(OP, y.shape())?;
    let x = cpu.f32(OP, x)?;
    let y = cpu.f32_mut(OP, y)?;
    cpu.workers.each(y.chunks_mut(PIECE).zip(x.chunks(PIECE)), |(y, x)| {
        simd::dispatch(
            #[inline(always)]
            || simd::add_scaled(y, x, alpha),
        );
    });
    Ok(())
}

pub(crate) fn add(cpu: &Cpu, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    each_pair(cpu, "add", a, b, |a, b| a + b)
}

pub(crate) fn divide(cpu: &Cpu, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    each_pair(cpu, "divide", a, b, |a, b| a / b)
}

/// The function of each two elements, in new storage.
fn each_pair(
    cpu: &Cpu,
    op: &'static str,
    a: &Tensor,
    b: &Tensor,
    function: impl Fn(f32, f32) -> f32 + Sync,
) -> Result<Tensor> {
    b.expect_shape(op, a.shape())?;
    let mut y = cpu.empty_f32(op, a.shape())?;
    let (a, b) = (cpu.f32(op, a)?, cpu.f32(op, b)?);
    let pieces = cpu.f32_mut(op, &mut y)?.chunks_mut(PIECE).zip(a.chunks(PIECE)).zip(b.chunks(PIECE));
    cpu.workers.each(pieces, |((y, a), b)| {
        simd::dispatch(
            #[inline(always)]
            || {
                for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                    *y = function(*a, *b);
                }
            },
        );
    });
    Ok(y)
}

pub(crate) fn scale(cpu: &Cpu, y: &mut Tensor, alpha: f32) -> Result<()> {
    let y = cpu.f32_mut("scale", y)?;
    cpu.workers.each(y.chunks_mut(PIECE), |y| {
        simd::dispatch(
            #[inline(always)]
            || {
                for y in y.iter_mut() {
                    *y *= alpha;
                }
            },
        );
    });
    Ok(())
}

pub(crate) fn fill_zero(cpu: &Cpu, y: &mut Tensor) -> Result<()> {
    cpu.fill(cpu.f32_mut("fill_zero", y)?, 0.0);
    Ok(())
}
