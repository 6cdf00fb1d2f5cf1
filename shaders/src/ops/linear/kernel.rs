//! Products with a weight in any type; what is not f32 is unpacked a panel of
//! rows at a time, into a scratch tensor that lives for one product. Most weights
//! are one panel.

use std::borrow::Cow;
use std::ops::Range;

use cubecl::prelude::*;

use super::{check_columns, check_weight_backward, weight_shape};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::cube::cube_sum;
use crate::ops::columns::kernel::copy_columns;
use crate::ops::gather::kernel::copy_at;
use crate::ops::matmul::kernel::narrow::{renarrow, widen};
use crate::ops::matmul::kernel::{Operand, product};
use crate::ops::{Weight, nf4};
use crate::tensor::{DType, Tensor};

/// √(Σ x²) of each row, from `norms[first]` on.
#[cube(launch)]
fn row_norm_kernel(x: &[f32], norms: &mut [f32], first: usize, rows: usize, columns: usize, #[comptime] units: usize) {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let row = CUBE_POS;
    if row < rows {
        let mut sum = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < columns {
            let value = x[row * columns + i];
            sum += value * value;
            i += units;
        }
        let total = cube_sum(sum, &mut shared, units);
        if UNIT_POS == 0 {
            norms[first + row] = total.sqrt();
        }
    }
}

/// Rows of a panel are a multiple of this, where they are not all.
const PANEL_STEP: usize = 64;

/// The panels of a weight of `[rows, columns]` that goes through a scratch tensor.
pub(crate) fn panels(gpu: &Gpu, (rows, columns): (usize, usize)) -> impl Iterator<Item = Range<usize>> + Clone {
    let most = gpu.panel_elements() / columns.max(1);
    let most = if most < rows { (most / PANEL_STEP * PANEL_STEP).max(PANEL_STEP) } else { rows };
    (0..rows).step_by(most.max(1)).map(move |first| first..rows.min(first + most))
}

/// The panels of a weight as products read it: one if it needs no scratch.
pub(crate) fn panels_of(gpu: &Gpu, op: &'static str, w: &Weight) -> Result<Vec<Range<usize>>> {
    let (rows, columns) = weight_shape(op, w)?;
    let all: Vec<Range<usize>> = match w {
        Weight::Dense(tensor) if tensor.dtype() == DType::F32 => std::iter::once(0..rows).collect(),
        // Tensor cores read it where it lies.
        Weight::Dense(tensor) if gpu.facts().tensor_cores.is_some_and(|cores| cores.dtype() == tensor.dtype()) => {
            std::iter::once(0..rows).collect()
        }
        _ => panels(gpu, (rows, columns)).collect(),
    };
    // Of a weight without rows there is still a product, of no columns.
    Ok(if all.is_empty() { std::iter::once(0..rows).collect() } else { all })
}

/// Rows of the weight in f32 `[rows, in]`; a weight that is f32 is itself where all
/// its rows are asked for.
pub(crate) fn unpacked_rows<'a>(
    gpu: &Gpu,
    op: &'static str,
    w: &'a Weight,
    rows: Range<usize>,
) -> Result<Cow<'a, Tensor>> {
    let (outputs, columns) = weight_shape(op, w)?;
    let first = rows.start * columns;
    match w {
        Weight::Dense(tensor) if tensor.dtype() == DType::Bf16 => Ok(Cow::Owned(widen(gpu, op, tensor, rows)?)),
        Weight::Dense(tensor) if rows == (0..outputs) => Ok(Cow::Borrowed(tensor)),
        Weight::Dense(tensor) => {
            let mut y = gpu.empty_f32(op, &[rows.len(), columns])?;
            copy_at(gpu, op, (tensor, first), (&mut y, 0), rows.len() * columns)?;
            Ok(Cow::Owned(y))
        }
        Weight::Nf4(weight) => Ok(Cow::Owned(nf4::kernel::unpack(gpu, op, weight, rows)?)),
    }
}

/// Rows of the weight as products take them: in f32, or in the type of the
/// tensor cores, which halves the scratch.
pub(crate) fn operand_rows<'a>(
    gpu: &Gpu,
    op: &'static str,
    w: &'a Weight,
    rows: Range<usize>,
) -> Result<Cow<'a, Tensor>> {
    let (outputs, columns) = weight_shape(op, w)?;
    let whole_words = (rows.start * columns).is_multiple_of(8);
    match (gpu.facts().tensor_cores, w) {
        (Some(cores), Weight::Dense(tensor)) if tensor.dtype() == cores.dtype() && rows == (0..outputs) => {
            Ok(Cow::Borrowed(tensor))
        }
        (Some(cores), Weight::Dense(tensor)) if tensor.dtype() == DType::Bf16 && whole_words => {
            Ok(Cow::Owned(renarrow(gpu, op, cores, tensor, rows)?))
        }
        (Some(cores), Weight::Nf4(weight)) if whole_words => {
            Ok(Cow::Owned(nf4::kernel::unpack_narrow(gpu, op, cores, weight, rows)?))
        }
        _ => unpacked_rows(gpu, op, w, rows),
    }
}

/// A matrix as it lies.
fn plain(tensor: &Tensor) -> Operand<'_> {
    Operand { tensor, transpose: false }
}

/// The weight's values on the host.
pub(crate) fn read(gpu: &Gpu, w: &Weight) -> Result<Vec<f32>> {
    const OP: &str = "read_weight";
    let mut values = Vec::new();
    for rows in panels_of(gpu, OP, w)? {
        values.extend(gpu.read_f32(OP, unpacked_rows(gpu, OP, w, rows)?.as_ref())?);
    }
    Ok(values)
}

pub(crate) fn forward(gpu: &Gpu, op: &'static str, x: &Tensor, w: &Weight) -> Result<Tensor> {
    let (outputs, inputs) = weight_shape(op, w)?;
    check_columns(op, x, inputs)?;
    let mut y = gpu.empty_f32(op, &[x.rows(), outputs])?;
    for rows in panels_of(gpu, op, w)? {
        let w = operand_rows(gpu, op, w, rows.clone())?;
        let w = Operand { tensor: &w, transpose: true };
        if rows.len() == outputs {
            product(gpu, op, plain(x), w, 1.0, false, &mut y)?;
        } else {
            let mut part = gpu.empty_f32(op, &[x.rows(), rows.len()])?;
            product(gpu, op, plain(x), w, 1.0, false, &mut part)?;
            copy_columns(gpu, op, (&part, 0), (&mut y, rows.start), rows.len())?;
        }
    }
    Ok(y)
}

pub(crate) fn backward(gpu: &Gpu, op: &'static str, dy: &Tensor, w: &Weight, into: Option<Tensor>) -> Result<Tensor> {
    let (outputs, inputs) = weight_shape(op, w)?;
    check_columns(op, dy, outputs)?;
    let (mut dx, mut add) = gpu.accumulator(op, &[dy.rows(), inputs], into)?;
    for rows in panels_of(gpu, op, w)? {
        let w = operand_rows(gpu, op, w, rows.clone())?;
        if rows.len() == outputs {
            product(gpu, op, plain(dy), plain(&w), 1.0, add, &mut dx)?;
        } else {
            let mut part = gpu.empty_f32(op, &[dy.rows(), rows.len()])?;
            copy_columns(gpu, op, (dy, rows.start), (&mut part, 0), rows.len())?;
            product(gpu, op, plain(&part), plain(&w), 1.0, add, &mut dx)?;
        }
        add = true;
    }
    Ok(dx)
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
    let mut norms = gpu.empty_f32(OP, &[outputs])?;
    // One panel's sum at a time.
    for rows in panels(gpu, (outputs, inputs)) {
        let mut sum = match unpacked_rows(gpu, OP, w, rows.clone())? {
            Cow::Owned(scratch) => scratch,
            Cow::Borrowed(weight) => gpu.copy_tensor(OP, weight)?,
        };
        if rows.len() == outputs {
            product(gpu, OP, plain(b), plain(a), scale, true, &mut sum)?;
        } else {
            let mut part = gpu.empty_f32(OP, &[rows.len(), rank])?;
            copy_at(gpu, OP, (b, rows.start * rank), (&mut part, 0), rows.len() * rank)?;
            product(gpu, OP, plain(&part), plain(a), scale, true, &mut sum)?;
        }
        let (count, dim, units) = gpu.by_row(rows.len(), inputs);
        row_norm_kernel::launch(
            gpu.client(),
            count,
            dim,
            gpu.input_f32(OP, &sum)?,
            gpu.output_f32(OP, &mut norms)?,
            rows.start,
            rows.len(),
            inputs,
            units,
        );
    }
    Ok(norms)
}
