//! Products: cubek's tensor-core routine if the device has such cores, a
//! tiled routine on plain units where not. Any shape, either side transposed.

mod cores;
pub(crate) mod narrow;
mod tiled;

use super::check;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops::elementwise;
use crate::tensor::Tensor;

/// A matrix as a product uses it: in f32, or, if the device has tensor
/// cores, already in their type.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub tensor: &'a Tensor,
    pub transpose: bool,
}

/// The size of a product.
#[derive(Clone, Copy)]
struct Size {
    rows: usize,
    depth: usize,
    columns: usize,
}

/// out `[rows, columns]` = alpha · op(a) op(b), added to what is there where
/// `add` says. On tensor cores operands are rounded to their type and sums are
/// in f32.
pub(crate) fn product(
    gpu: &Gpu,
    op: &'static str,
    a: Operand,
    b: Operand,
    alpha: f32,
    add: bool,
    out: &mut Tensor,
) -> Result<()> {
    let Some(size) = size(gpu, op, a, b, add, out)? else { return Ok(()) };
    match gpu.facts().tensor_cores {
        Some(kind) => cores::product(gpu, op, kind, (a, b), size, alpha, add, out),
        None => tiled::product(gpu, op, (a, b), size, alpha, add, out),
    }
}

/// As [`product`], in f32 on every device: what optimizers iterate on.
pub(crate) fn product_f32(gpu: &Gpu, op: &'static str, a: Operand, b: Operand, out: &mut Tensor) -> Result<()> {
    let Some(size) = size(gpu, op, a, b, false, out)? else { return Ok(()) };
    tiled::product(gpu, op, (a, b), size, 1.0, false, out)
}

/// The size of what is to be computed; `None` where that is nothing.
fn size(gpu: &Gpu, op: &'static str, a: Operand, b: Operand, add: bool, out: &mut Tensor) -> Result<Option<Size>> {
    let (rows, depth, columns) = check(a.tensor, a.transpose, b.tensor, b.transpose)?;
    if rows * columns == 0 {
        return Ok(None);
    }
    if depth == 0 {
        if !add {
            elementwise::kernel::fill(gpu, op, out, 0.0)?;
        }
        return Ok(None);
    }
    Ok(Some(Size { rows, depth, columns }))
}

/// alpha · op(a) op(b), added to `into`.
pub(crate) fn matmul(
    gpu: &Gpu,
    op: &'static str,
    a: Operand,
    b: Operand,
    alpha: f32,
    into: Option<Tensor>,
) -> Result<Tensor> {
    let (rows, _, columns) = check(a.tensor, a.transpose, b.tensor, b.transpose)?;
    let (mut out, add) = gpu.accumulator(op, &[rows, columns], into)?;
    product(gpu, op, a, b, alpha, add, &mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests;
