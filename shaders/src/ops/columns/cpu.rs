//! Row-parallel loops. Sums down the columns go by fixed blocks of rows whose
//! partial sums are added in order, so the bits do not depend on the threads.

use super::{check_parts, check_vector, check_widths};
use crate::cpu::{Cpu, piece_rows, simd};
use crate::error::Result;
use crate::tensor::Tensor;

/// Rows whose sums one task makes.
pub(crate) const BLOCK_ROWS: usize = 32;

/// out[c] += Σ over the partial sums, in order of their blocks.
pub(crate) fn add_partials(out: &mut [f32], partials: &[f32]) {
    for partial in partials.chunks_exact(out.len().max(1)) {
        simd::dispatch(
            #[inline(always)]
            || simd::add_scaled(out, partial, 1.0),
        );
    }
}

pub(crate) fn add_bias(cpu: &Cpu, y: &mut Tensor, bias: &Tensor) -> Result<()> {
    const OP: &str = "add_bias";
    check_vector(OP, y, bias)?;
    let bias = cpu.f32(OP, bias)?;
    let columns = bias.len().max(1);
    let y = cpu.f32_mut(OP, y)?;
    cpu.workers.each(y.chunks_mut(piece_rows(columns) * columns), |y| {
        simd::dispatch(
            #[inline(always)]
            || {
                for y in y.chunks_exact_mut(columns) {
                    simd::add_scaled(y, bias, 1.0);
                }
            },
        );
    });
    Ok(())
}

pub(crate) fn bias_backward(cpu: &Cpu, dy: &Tensor, dbias: &mut Tensor) -> Result<()> {
    const OP: &str = "bias_backward";
    check_vector(OP, dy, dbias)?;
    let dy = cpu.f32(OP, dy)?;
    let out = cpu.f32_mut(OP, dbias)?;
    let columns = out.len().max(1);
    let mut partials = vec![0.0f32; dy.len().div_ceil(BLOCK_ROWS * columns) * columns];
    cpu.workers.each(partials.chunks_mut(columns).zip(dy.chunks(BLOCK_ROWS * columns)), |(partial, dy)| {
        simd::dispatch(
            #[inline(always)]
            || {
                for dy in dy.chunks_exact(columns) {
                    simd::add_scaled(partial, dy, 1.0);
                }
            },
        );
    });
    add_partials(out, &partials);
    Ok(())
}

pub(crate) fn scale_columns(cpu: &Cpu, x: &Tensor, g: &Tensor) -> Result<Tensor> {
    const OP: &str = "scale_columns";
    check_vector(OP, x, g)?;
    let mut y = cpu.empty_f32(OP, x.shape())?;
    let (x, g) = (cpu.f32(OP, x)?, cpu.f32(OP, g)?);
    let columns = g.len().max(1);
    let piece = piece_rows(columns) * columns;
    cpu.workers.each(cpu.f32_mut(OP, &mut y)?.chunks_mut(piece).zip(x.chunks(piece)), |(y, x)| {
        simd::dispatch(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_exact_mut(columns).zip(x.chunks_exact(columns)) {
                    for ((y, x), g) in y.iter_mut().zip(x).zip(g) {
                        *y = x * g;
                    }
                }
            },
        );
    });
    Ok(y)
}

pub(crate) fn column_dot(cpu: &Cpu, a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<()> {
    const OP: &str = "column_dot";
    b.expect_shape(OP, a.shape())?;
    check_vector(OP, a, out)?;
    let (a, b) = (cpu.f32(OP, a)?, cpu.f32(OP, b)?);
    let out = cpu.f32_mut(OP, out)?;
    let columns = out.len().max(1);
    let block = BLOCK_ROWS * columns;
    let mut partials = vec![0.0f32; a.len().div_ceil(block) * columns];
    let blocks = partials.chunks_mut(columns).zip(a.chunks(block)).zip(b.chunks(block));
    cpu.workers.each(blocks, |((partial, a), b)| {
        simd::dispatch(
            #[inline(always)]
            || {
                for (a, b) in a.chunks_exact(columns).zip(b.chunks_exact(columns)) {
                    for ((p, a), b) in partial.iter_mut().zip(a).zip(b) {
                        *p = a.mul_add(*b, *p);
                    }
                }
            },
        );
    });
    add_partials(out, &partials);
    Ok(())
}

pub(crate) fn split_columns(cpu: &Cpu, x: &Tensor, widths: &[usize]) -> Result<Vec<Tensor>> {
    const OP: &str = "split_columns";
    check_widths(OP, x, widths)?;
    let (rows, columns) = (x.rows(), x.columns());
    let x = cpu.f32(OP, x)?;
    let mut parts = Vec::with_capacity(widths.len());
    let mut from = 0;
    for &width in widths {
        let mut part = cpu.empty_f32(OP, &[rows, width])?;
        let block = piece_rows(width);
        let pieces = cpu.f32_mut(OP, &mut part)?.chunks_mut(block * width).zip(x.chunks(block * columns));
        cpu.workers.each(pieces, |(y, x)| {
            for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(columns)) {
                y.copy_from_slice(&x[from..from + width]);
            }
        });
        from += width;
        parts.push(part);
    }
    Ok(parts)
}

pub(crate) fn join_columns(cpu: &Cpu, parts: &[&Tensor]) -> Result<Tensor> {
    const OP: &str = "join_columns";
    let (rows, columns) = check_parts(OP, parts)?;
    let mut y = cpu.empty_f32(OP, &[rows, columns])?;
    let mut sources = Vec::with_capacity(parts.len());
    for part in parts {
        sources.push((cpu.f32(OP, part)?, part.columns()));
    }
    let block = piece_rows(columns);
    cpu.workers.each(cpu.f32_mut(OP, &mut y)?.chunks_mut((block * columns).max(1)).enumerate(), |(index, y)| {
        for (row, y) in y.chunks_exact_mut(columns).enumerate() {
            let row = index * block + row;
            let mut from = 0;
            for (x, width) in &sources {
                y[from..from + width].copy_from_slice(&x[row * width..(row + 1) * width]);
                from += width;
            }
        }
    });
    Ok(y)
}
