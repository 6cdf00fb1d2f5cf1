//! A row at a time; the weight's and bias's gradients by blocks of rows.

use crate::cpu::{Cpu, piece_rows, simd};
use crate::error::{Result, shape_error};
use crate::ops::columns::cpu::{BLOCK_ROWS, add_partials};
use crate::ops::rms_norm::check;
use crate::tensor::Tensor;

pub(crate) fn forward(cpu: &Cpu, x: &Tensor, w: &Tensor, b: &Tensor, epsilon: f32) -> Result<(Tensor, Tensor)> {
    const OP: &str = "layer_norm";
    let rows = check(OP, x, w)?;
    b.expect_shape(OP, w.shape())?;
    let mut y = cpu.empty_f32(OP, x.shape())?;
    let mut statistics = cpu.empty_f32(OP, &[rows, 2])?;
    let (x, w, b) = (cpu.f32(OP, x)?, cpu.f32(OP, w)?, cpu.f32(OP, b)?);
    let n = w.len();
    let block = piece_rows(n);
    let pieces = cpu
        .f32_mut(OP, &mut y)?
        .chunks_mut(block * n)
        .zip(x.chunks(block * n))
        .zip(cpu.f32_mut(OP, &mut statistics)?.chunks_mut(2 * block));
    cpu.workers.each(pieces, |((y, x), statistics)| {
        simd::dispatch(
            #[inline(always)]
            || {
                let rows = y.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(statistics.chunks_exact_mut(2));
                for ((y, x), statistic) in rows {
                    let mean = simd::sum(x) / n as f32;
                    // Centred first, then squared: no cancellation.
                    for (y, x) in y.iter_mut().zip(x) {
                        *y = x - mean;
                    }
                    let rstd = 1.0 / (simd::dot(y, y) / n as f32 + epsilon).sqrt();
                    statistic[0] = mean;
                    statistic[1] = rstd;
                    for ((y, w), b) in y.iter_mut().zip(w).zip(b) {
                        *y = (*y * rstd).mul_add(*w, *b);
                    }
                }
            },
        );
    });
    Ok((y, statistics))
}

pub(crate) fn backward(
    cpu: &Cpu,
    dy: &Tensor,
    x: &Tensor,
    w: &Tensor,
    statistics: &Tensor,
    into: Option<Tensor>,
    dwb: Option<(&mut Tensor, &mut Tensor)>,
) -> Result<Tensor> {
    const OP: &str = "layer_norm_backward";
    let rows = check(OP, x, w)?;
    dy.expect_shape(OP, x.shape())?;
    if statistics.len() != 2 * rows {
        return Err(shape_error(OP, format!("{rows} pairs of mean and 1/std"), format!("{:?}", statistics.shape())));
    }
    let mut dx = cpu.accumulator(OP, x.shape(), into)?;
    let (dy, x, w) = (cpu.f32(OP, dy)?, cpu.f32(OP, x)?, cpu.f32(OP, w)?);
    let statistics = cpu.f32(OP, statistics)?;
    let n = w.len();
    let block = BLOCK_ROWS * n;
    // Of each block: the gradient of w, then that of b.
    let mut partials = vec![0.0f32; rows.div_ceil(BLOCK_ROWS) * 2 * n];
    let pieces = cpu
        .f32_mut(OP, &mut dx)?
        .chunks_mut(block)
        .zip(dy.chunks(block))
        .zip(x.chunks(block))
        .zip(statistics.chunks(2 * BLOCK_ROWS))
        .zip(partials.chunks_mut(2 * n));
    cpu.workers.each(pieces, |((((dx, dy), x), statistics), partial)| {
        let (dw, db) = partial.split_at_mut(n);
        let mut norm = vec![0.0f32; n];
        let mut g = vec![0.0f32; n];
        simd::dispatch(
            #[inline(always)]
            || {
                let rows = dx
                    .chunks_exact_mut(n)
                    .zip(dy.chunks_exact(n))
                    .zip(x.chunks_exact(n))
                    .zip(statistics.chunks_exact(2));
                for (((dx, dy), x), s) in rows {
                    let (mean, rstd) = (s[0], s[1]);
                    for i in 0..n {
                        norm[i] = (x[i] - mean) * rstd;
                        g[i] = dy[i] * w[i];
                        dw[i] = dy[i].mul_add(norm[i], dw[i]);
                        db[i] += dy[i];
                    }
                    let mean_g = simd::sum(&g) / n as f32;
                    let mean_gn = simd::dot(&g, &norm) / n as f32;
                    for i in 0..n {
                        dx[i] += rstd * (g[i] - mean_g - norm[i] * mean_gn);
                    }
                }
            },
        );
    });
    if let Some((dw, db)) = dwb {
        dw.expect_shape(OP, &[n])?;
        db.expect_shape(OP, &[n])?;
        let mut sums = vec![0.0f32; 2 * n];
        add_partials(&mut sums, &partials);
        simd::add_scaled(cpu.f32_mut(OP, dw)?, &sums[..n], 1.0);
        simd::add_scaled(cpu.f32_mut(OP, db)?, &sums[n..], 1.0);
    }
    Ok(dx)
}
