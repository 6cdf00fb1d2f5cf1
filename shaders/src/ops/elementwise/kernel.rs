//! One unit an element.

use cubecl::prelude::*;

use crate::error::Result;
use crate::gpu::Gpu;
use crate::tensor::{DType, Tensor};

#[cube(launch)]
fn fill_kernel(y: &mut [f32], value: f32) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] = value;
    }
}

#[cube(launch)]
fn copy_kernel(x: &[u32], y: &mut [u32]) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] = x[ABSOLUTE_POS];
    }
}

#[cube(launch)]
fn add_scaled_kernel(y: &mut [f32], x: &[f32], alpha: f32) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] += alpha * x[ABSOLUTE_POS];
    }
}

#[cube(launch)]
fn add_kernel(a: &[f32], b: &[f32], y: &mut [f32]) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] = a[ABSOLUTE_POS] + b[ABSOLUTE_POS];
    }
}

#[cube(launch)]
fn divide_kernel(a: &[f32], b: &[f32], y: &mut [f32]) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] = a[ABSOLUTE_POS] / b[ABSOLUTE_POS];
    }
}

#[cube(launch)]
fn scale_kernel(y: &mut [f32], alpha: f32) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] *= alpha;
    }
}

pub(crate) fn fill(gpu: &Gpu, op: &'static str, y: &mut Tensor, value: f32) -> Result<()> {
    if y.is_empty() {
        return Ok(());
    }
    let (count, dim) = gpu.elementwise(y.len());
    fill_kernel::launch(gpu.client(), count, dim, gpu.output_f32(op, y)?, value);
    Ok(())
}

/// The words of x, whatever their type.
pub(crate) fn copy(gpu: &Gpu, op: &'static str, x: &Tensor, y: &mut Tensor) -> Result<()> {
    if x.is_empty() {
        return Ok(());
    }
    let (dtype, words) = (x.dtype(), x.bytes().div_ceil(4));
    let (count, dim) = gpu.elementwise(words);
    copy_kernel::launch(gpu.client(), count, dim, gpu.input(op, x, dtype)?, gpu.output(op, y, dtype)?);
    Ok(())
}

pub(crate) fn add_scaled(gpu: &Gpu, y: &mut Tensor, x: &Tensor, alpha: f32) -> Result<()> {
    const OP: &str = "add_scaled";
    x.expect_shape(OP, y.shape())?;
    let (x, words) = (gpu.input_f32(OP, x)?, y.len());
    let y = gpu.output_f32(OP, y)?;
    if words > 0 {
        let (count, dim) = gpu.elementwise(words);
        add_scaled_kernel::launch(gpu.client(), count, dim, y, x, alpha);
    }
    Ok(())
}

pub(crate) fn add(gpu: &Gpu, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    const OP: &str = "add";
    b.expect_shape(OP, a.shape())?;
    let (left, right) = (gpu.input_f32(OP, a)?, gpu.input_f32(OP, b)?);
    let mut y = gpu.empty(OP, a.shape(), DType::F32)?;
    if !y.is_empty() {
        let (count, dim) = gpu.elementwise(y.len());
        add_kernel::launch(gpu.client(), count, dim, left, right, gpu.output_f32(OP, &mut y)?);
    }
    Ok(y)
}

pub(crate) fn divide(gpu: &Gpu, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    const OP: &str = "divide";
    b.expect_shape(OP, a.shape())?;
    let (left, right) = (gpu.input_f32(OP, a)?, gpu.input_f32(OP, b)?);
    let mut y = gpu.empty(OP, a.shape(), DType::F32)?;
    if !y.is_empty() {
        let (count, dim) = gpu.elementwise(y.len());
        divide_kernel::launch(gpu.client(), count, dim, left, right, gpu.output_f32(OP, &mut y)?);
    }
    Ok(y)
}

pub(crate) fn scale(gpu: &Gpu, y: &mut Tensor, alpha: f32) -> Result<()> {
    const OP: &str = "scale";
    let words = y.len();
    let y = gpu.output_f32(OP, y)?;
    if words > 0 {
        let (count, dim) = gpu.elementwise(words);
        scale_kernel::launch(gpu.client(), count, dim, y, alpha);
    }
    Ok(())
}
