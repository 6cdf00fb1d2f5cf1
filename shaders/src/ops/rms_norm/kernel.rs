//! One cube a group.

use cubecl::prelude::*;

use super::check;
use crate::error::{Result, shape_error};
use crate::gpu::Gpu;
use crate::gpu::cube::cube_sum;
use crate::ops::columns::kernel::{Summand, column_sums};
use crate::tensor::Tensor;

#[cube(launch)]
fn forward_kernel(
    x: &[f32],
    w: &[f32],
    y: &mut [f32],
    statistics: &mut [f32],
    epsilon: f32,
    offset: f32,
    #[comptime] units: usize,
) {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let n = w.len();
    let group = CUBE_POS;
    if group < statistics.len() {
        let unit = UNIT_POS as usize;
        let mut sum = 0.0f32;
        let mut i = unit;
        while i < n {
            let value = x[group * n + i];
            sum += value * value;
            i += units;
        }
        let mean = cube_sum(sum, &mut shared, units) / f32::cast_from(n);
        let rstd = 1.0f32 / (mean + epsilon).sqrt();
        if unit == 0 {
            statistics[group] = rstd;
        }
        let mut i = unit;
        while i < n {
            y[group * n + i] = x[group * n + i] * rstd * (w[i] + offset);
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
    offset: f32,
    #[comptime] add: bool,
    #[comptime] units: usize,
) {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let n = w.len();
    let group = CUBE_POS;
    if group < statistics.len() {
        let unit = UNIT_POS as usize;
        let mut sum = 0.0f32;
        let mut i = unit;
        while i < n {
            sum += dy[group * n + i] * (w[i] + offset) * x[group * n + i];
            i += units;
        }
        let mean = cube_sum(sum, &mut shared, units) / f32::cast_from(n);
        let rstd = statistics[group];
        let back = rstd * rstd * rstd * mean;
        let mut i = unit;
        while i < n {
            let at = group * n + i;
            let d = rstd * dy[at] * (w[i] + offset) - x[at] * back;
            if comptime!(add) {
                dx[at] += d;
            } else {
                dx[at] = d;
            }
            i += units;
        }
    }
}

pub(crate) fn forward(gpu: &Gpu, x: &Tensor, w: &Tensor, epsilon: f32, offset: f32) -> Result<(Tensor, Tensor)> {
    const OP: &str = "rms_norm";
    let groups = check(OP, x, w)?;
    let mut y = gpu.empty_f32(OP, x.shape())?;
    let mut statistics = gpu.empty_f32(OP, &[groups])?;
    if groups > 0 {
        let (count, dim, units) = gpu.by_row(groups, w.len());
        let (x, w) = (gpu.input_f32(OP, x)?, gpu.input_f32(OP, w)?);
        let (out, rstd) = (gpu.output_f32(OP, &mut y)?, gpu.output_f32(OP, &mut statistics)?);
        forward_kernel::launch(gpu.client(), count, dim, x, w, out, rstd, epsilon, offset, units);
    }
    Ok((y, statistics))
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(
    gpu: &Gpu,
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
    let (mut dx, add) = gpu.accumulator(OP, x.shape(), into)?;
    if groups > 0 {
        let (count, dim, units) = gpu.by_row(groups, w.len());
        let (dyt, xt, wt) = (gpu.input_f32(OP, dy)?, gpu.input_f32(OP, x)?, gpu.input_f32(OP, w)?);
        let (statistics, out) = (gpu.input_f32(OP, rstd)?, gpu.output_f32(OP, &mut dx)?);
        backward_kernel::launch(gpu.client(), count, dim, dyt, xt, wt, statistics, out, offset, add, units);
    }
    if let Some(dw) = dw {
        column_sums(gpu, OP, Summand::ScaledProduct, [dy, x, rstd], w.len(), dw)?;
    }
    Ok(dx)
}
