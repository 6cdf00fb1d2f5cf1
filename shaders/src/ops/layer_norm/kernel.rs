//! One cube a row.

use cubecl::prelude::*;

use crate::error::{Result, shape_error};
use crate::gpu::Gpu;
use crate::gpu::cube::cube_sum;
use crate::ops::columns::kernel::{Summand, column_sums};
use crate::ops::rms_norm::check;
use crate::tensor::Tensor;

#[cube(launch)]
fn forward_kernel(
    x: &[f32],
    w: &[f32],
    b: &[f32],
    y: &mut [f32],
    statistics: &mut [f32],
    rows: usize,
    epsilon: f32,
    #[comptime] units: usize,
) {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let n = w.len();
    let row = CUBE_POS;
    if row < rows {
        let unit = UNIT_POS as usize;
        let mut sum = 0.0f32;
        let mut i = unit;
        while i < n {
            sum += x[row * n + i];
            i += units;
        }
        let mean = cube_sum(sum, &mut shared, units) / f32::cast_from(n);
        let mut squares = 0.0f32;
        let mut i = unit;
        while i < n {
            let d = x[row * n + i] - mean;
            squares += d * d;
            i += units;
        }
        let variance = cube_sum(squares, &mut shared, units) / f32::cast_from(n);
        let rstd = 1.0f32 / (variance + epsilon).sqrt();
        if unit == 0 {
            statistics[2 * row] = mean;
            statistics[2 * row + 1] = rstd;
        }
        let mut i = unit;
        while i < n {
            y[row * n + i] = (x[row * n + i] - mean) * rstd * w[i] + b[i];
            i += units;
        }
    }
}

#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn backward_kernel(
    dy: &[f32],
    x: &[f32],
    w: &[f32],
    statistics: &[f32],
    dx: &mut [f32],
    rows: usize,
    #[comptime] add: bool,
    #[comptime] units: usize,
) {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let n = w.len();
    let row = CUBE_POS;
    if row < rows {
        let unit = UNIT_POS as usize;
        let mean = statistics[2 * row];
        let rstd = statistics[2 * row + 1];
        let mut sum = 0.0f32;
        let mut product = 0.0f32;
        let mut i = unit;
        while i < n {
            let g = dy[row * n + i] * w[i];
            sum += g;
            product += g * ((x[row * n + i] - mean) * rstd);
            i += units;
        }
        let mean_g = cube_sum(sum, &mut shared, units) / f32::cast_from(n);
        let mean_gn = cube_sum(product, &mut shared, units) / f32::cast_from(n);
        let mut i = unit;
        while i < n {
            let at = row * n + i;
            let normal = (x[at] - mean) * rstd;
            let d = rstd * (dy[at] * w[i] - mean_g - normal * mean_gn);
            if comptime!(add) {
                dx[at] += d;
            } else {
                dx[at] = d;
            }
            i += units;
        }
    }
}

pub(crate) fn forward(gpu: &Gpu, x: &Tensor, w: &Tensor, b: &Tensor, epsilon: f32) -> Result<(Tensor, Tensor)> {
    const OP: &str = "layer_norm";
    let rows = check(OP, x, w)?;
    b.expect_shape(OP, w.shape())?;
    let mut y = gpu.empty_f32(OP, x.shape())?;
    let mut statistics = gpu.empty_f32(OP, &[rows, 2])?;
    if rows > 0 {
        let (count, dim, units) = gpu.by_row(rows, w.len());
        let (x, w, b) = (gpu.input_f32(OP, x)?, gpu.input_f32(OP, w)?, gpu.input_f32(OP, b)?);
        let (out, both) = (gpu.output_f32(OP, &mut y)?, gpu.output_f32(OP, &mut statistics)?);
        forward_kernel::launch(gpu.client(), count, dim, x, w, b, out, both, rows, epsilon, units);
    }
    Ok((y, statistics))
}

pub(crate) fn backward(
    gpu: &Gpu,
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
        return Err(shape_error(OP, format!("[{rows}, 2] statistics"), format!("{:?}", statistics.shape())));
    }
    let (mut dx, add) = gpu.accumulator(OP, x.shape(), into)?;
    if rows > 0 {
        let (count, dim, units) = gpu.by_row(rows, w.len());
        let (dyt, xt, wt) = (gpu.input_f32(OP, dy)?, gpu.input_f32(OP, x)?, gpu.input_f32(OP, w)?);
        let (both, out) = (gpu.input_f32(OP, statistics)?, gpu.output_f32(OP, &mut dx)?);
        backward_kernel::launch(gpu.client(), count, dim, dyt, xt, wt, both, out, rows, add, units);
    }
    if let Some((dw, db)) = dwb {
        column_sums(gpu, OP, Summand::Normalised, [dy, x, statistics], w.len(), dw)?;
        column_sums(gpu, OP, Summand::Plain, [dy; 3], w.len(), db)?;
    }
    Ok(dx)
}
