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
    const OP: &str = "add";
    b.expect_shape(OP, a.shape())?;
    let mut y = cpu.empty_f32(OP, a.shape())?;
    let (a, b) = (cpu.f32(OP, a)?, cpu.f32(OP, b)?);
    let pieces = cpu.f32_mut(OP, &mut y)?.chunks_mut(PIECE).zip(a.chunks(PIECE)).zip(b.chunks(PIECE));
    cpu.workers.each(pieces, |((y, a), b)| {
        simd::dispatch(
            #[inline(always)]
            || {
                for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                    *y = a + b;
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
