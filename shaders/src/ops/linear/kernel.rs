//! Products with a weight in any type; what is not f32 is unpacked into a
//! scratch tensor that lives for one product.

use std::borrow::Cow;

use cubecl::prelude::*;

use super::{check_columns, check_weight_backward, weight_shape};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::cube::cube_sum;
use crate::ops::matmul::kernel::narrow::{renarrow, widen};
use crate::ops::matmul::kernel::{Operand, matmul, product};
use crate::ops::{Weight, nf4};
use crate::tensor::{DType, Tensor};

/// √(Σ x²) of each row.
#[cube(launch)]
fn row_norm_kernel(x: &[f32], norms: &mut [f32], columns: usize, #[comptime] units: usize) {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let row = CUBE_POS;
    if row < norms.len() {
        let mut sum = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < columns {
            let value = x[row * columns + i];
            sum += value * value;
            i += units;
        }
        let total = cube_sum(sum, &mut shared, units);
        if UNIT_POS == 0 {
            norms[row] = total.sqrt();
        }
    }
}

/// The weight in f32 `[out, in]`.
pub(crate) fn unpacked<'a>(gpu: &Gpu, op: &'static str, w: &'a Weight) -> Result<Cow<'a, Tensor>> {
    match w {
        Weight::Dense(tensor) if tensor.dtype() == DType::Bf16 => Ok(Cow::Owned(widen(gpu, op, tensor)?)),
        Weight::Dense(tensor) => Ok(Cow::Borrowed(tensor)),
        Weight::Nf4(weight) => Ok(Cow::Owned(nf4::kernel::unpack(gpu, op, weight)?)),
    }
}

/// The weight as products take it: in f32, or in the type of the tensor cores,
/// which halves the scratch.
pub(crate) fn operand<'a>(gpu: &Gpu, op: &'static str, w: &'a Weight) -> Result<Cow<'a, Tensor>> {
    let Some(kind) = gpu.facts().tensor_cores else { return unpacked(gpu, op, w) };
    match w {
        Weight::Dense(tensor) if tensor.dtype() == DType::Bf16 && tensor.dtype() != kind.dtype() => {
            Ok(Cow::Owned(renarrow(gpu, op, kind, tensor)?))
        }
        Weight::Dense(tensor) => Ok(Cow::Borrowed(tensor)),
        Weight::Nf4(weight) => Ok(Cow::Owned(nf4::kernel::unpack_narrow(gpu, op, kind, weight)?)),
    }
}

pub(crate) fn forward(gpu: &Gpu, op: &'static str, x: &Tensor, w: &Weight) -> Result<Tensor> {
    let (outputs, inputs) = weight_shape(op, w)?;
    check_columns(op, x, inputs)?;
    let mut y = gpu.empty_f32(op, &[x.rows(), outputs])?;
    let w = operand(gpu, op, w)?;
    product(
        gpu,
        op,
        Operand { tensor: x, transpose: false },
        Operand { tensor: &w, transpose: true },
        1.0,
        false,
        &mut y,
    )?;
    Ok(y)
}

pub(crate) fn backward(gpu: &Gpu, op: &'static str, dy: &Tensor, w: &Weight, into: Option<Tensor>) -> Result<Tensor> {
    let (outputs, _) = weight_shape(op, w)?;
    check_columns(op, dy, outputs)?;
    let w = operand(gpu, op, w)?;
    matmul(gpu, op, Operand { tensor: dy, transpose: false }, Operand { tensor: &w, transpose: false }, 1.0, into)
}

pub(crate) fn weight_backward(gpu: &Gpu, dy: &Tensor, x: &Tensor, dw: &mut Tensor) -> Result<()> {
    const OP: &str = "linear_weight_backward";
    check_weight_backward(OP, dy, x, dw)?;
    product(gpu, OP, Operand { tensor: dy, transpose: true }, Operand { tensor: x, transpose: false }, 1.0, true, dw)
}

pub(crate) fn dora_norm(gpu: &Gpu, w: &Weight, a: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor> {
    const OP: &str = "dora_norm";
    let (outputs, inputs) = weight_shape(OP, w)?;
    let rank = a.rows();
    a.expect_shape(OP, &[rank, inputs])?;
    b.expect_shape(OP, &[outputs, rank])?;
    // One weight's sum at a time, as one weight at a time is unpacked.
    let mut sum = match unpacked(gpu, OP, w)? {
        Cow::Owned(scratch) => scratch,
        Cow::Borrowed(weight) => gpu.copy_tensor(OP, weight)?,
    };
    let plain = |tensor| Operand { tensor, transpose: false };
    product(gpu, OP, plain(b), plain(a), scale, true, &mut sum)?;
    let mut norms = gpu.empty_f32(OP, &[outputs])?;
    if outputs > 0 {
        let (count, dim, units) = gpu.by_row(outputs, inputs);
        let sum = gpu.input_f32(OP, &sum)?;
        row_norm_kernel::launch(gpu.client(), count, dim, sum, gpu.output_f32(OP, &mut norms)?, inputs, units);
    }
    Ok(norms)
}
