//! A group at a time; the weight's gradient by blocks of groups.

use super::check;
use crate::cpu::{Cpu, piece_rows, simd};
use crate::error::{Result, shape_error};
use crate::ops::columns::cpu::{BLOCK_ROWS, add_partials};
use crate::tensor::Tensor;

pub(crate) fn forward(cpu: &Cpu, x: &Tensor, w: &Tensor, epsilon: f32, offset: f32) -> Result<(Tensor, Tensor)> {
    const OP: &str = "rms_norm";
    let groups = check(OP, x, w)?;
    let mut y = cpu.empty_f32(OP, x.shape())?;
    let mut statistics = cpu.empty_f32(OP, &[groups])?;
    let (x, w) = (cpu.f32(OP, x)?, cpu.f32(OP, w)?);
    let n = w.len();
    let block = piece_rows(n);
    let pieces = cpu
        .f32_mut(OP, &mut y)?
        .chunks_mut(block * n)
        .zip(x.chunks(block * n))
        .zip(cpu.f32_mut(OP, &mut statistics)?.chunks_mut(block));
    cpu.workers.each(pieces, |((y, x), statistics)| {
        simd::dispatch(
            #[inline(always)]
            || {
                for ((y, x), statistic) in y.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(statistics) {
                    let rstd = 1.0 / (simd::dot(x, x) / n as f32 + epsilon).sqrt();
                    *statistic = rstd;
                    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                        *y = x * rstd * (w + offset);
                    }
                }
            },
        );
    });
    Ok((y, statistics))
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(
    cpu: &Cpu,
    dy: &Tensor,
    x: &Tensor,
    w: &Tensor,
    rstd: &Tensor,
    offset: f32,
    into: Option<Tensor>,
    dw: Option<&mut Tensor>,
) -> Result<Tensor> {
    const OP: &str = "rms_norm_backward";
    let groups = check(OP, x, w)?;
    dy.expect_shape(OP, x.shape())?;
    if rstd.len() != groups {
        return Err(shape_error(OP, format!("{groups} values of 1/rms"), format!("{:?}", rstd.shape())));
    }
    let add = into.is_some();
    let mut dx = match into {
        Some(into) => cpu.accumulator(OP, x.shape(), Some(into))?,
        None => cpu.empty_f32(OP, x.shape())?,
    };
    let (dy, x, w, rstd) = (cpu.f32(OP, dy)?, cpu.f32(OP, x)?, cpu.f32(OP, w)?, cpu.f32(OP, rstd)?);
    let n = w.len();
    let wants_dw = dw.is_some();
    let mut partials = vec![0.0f32; if wants_dw { groups.div_ceil(BLOCK_ROWS) * n } else { 0 }];
    let mut partial_rows: Vec<&mut [f32]> = partials.chunks_mut(n).collect();
    partial_rows.resize_with(groups.div_ceil(BLOCK_ROWS), || &mut []);
    let block = BLOCK_ROWS * n;
    let pieces = cpu
        .f32_mut(OP, &mut dx)?
        .chunks_mut(block)
        .zip(dy.chunks(block))
        .zip(x.chunks(block))
        .zip(rstd.chunks(BLOCK_ROWS))
        .zip(partial_rows);
    cpu.workers.each(pieces, |((((dx, dy), x), rstd), partial)| {
        simd::dispatch(
            #[inline(always)]
            || {
                let rows = dx.chunks_exact_mut(n).zip(dy.chunks_exact(n)).zip(x.chunks_exact(n)).zip(rstd);
                for (((dx, dy), x), rstd) in rows {
                    let mean = weighted_dot(dy, x, w, offset) / n as f32;
                    let (a, b) = (*rstd, -rstd * rstd * rstd * mean);
                    if add {
                        for (((dx, dy), x), w) in dx.iter_mut().zip(dy).zip(x).zip(w) {
                            *dx += x.mul_add(b, a * (dy * (w + offset)));
                        }
                    } else {
                        for (((dx, dy), x), w) in dx.iter_mut().zip(dy).zip(x).zip(w) {
                            *dx = x.mul_add(b, a * (dy * (w + offset)));
                        }
                    }
                    if wants_dw {
                        for ((dw, dy), x) in partial.iter_mut().zip(dy).zip(x) {
                            *dw += dy * x * rstd;
                        }
                    }
                }
            },
        );
    });
    if let Some(dw) = dw {
        dw.expect_shape(OP, &[n])?;
        add_partials(cpu.f32_mut(OP, dw)?, &partials);
    }
    Ok(dx)
}

/// Σ dy · (w + offset) · x.
#[inline(always)]
fn weighted_dot(dy: &[f32], x: &[f32], w: &[f32], offset: f32) -> f32 {
    const LANES: usize = 32;
    let mut lanes = [0.0f32; LANES];
    let (mut dys, mut xs, mut ws) = (dy.chunks_exact(LANES), x.chunks_exact(LANES), w.chunks_exact(LANES));
    for ((dy, x), w) in dys.by_ref().zip(xs.by_ref()).zip(ws.by_ref()) {
        for i in 0..LANES {
            lanes[i] = (dy[i] * (w[i] + offset)).mul_add(x[i], lanes[i]);
        }
    }
    let rest = dys.remainder().iter().zip(xs.remainder()).zip(ws.remainder());
    for (lane, ((dy, x), w)) in lanes.iter_mut().zip(rest) {
        *lane = (dy * (w + offset)).mul_add(*x, *lane);
    }
    simd::sum(&lanes)
}
