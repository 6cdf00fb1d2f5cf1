//! Products on tensor cores, by cubek: operands of 16 bits, sums in f32.
//!
//! An operand in f32 is rounded once, before the product, rather than each time
//! that a tile of it is loaded. Operands in f16 are scaled by a power of two
//! that is chosen per tensor on the device, and the product is scaled
//! back: gradients of any size keep eleven bits, with no loss scale to search
//! for and no step to skip (Micikevicius et al. 2018 describe the loss scale
//! that this stands in for).

use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::launch_ref;
use cubek::matmul::multi_level::Strategy;
use cubek::std::InputBinding;

use super::narrow::{Narrow, narrow};
use super::{Operand, Size, tiled};
use crate::error::{Result, TensorError};
use crate::gpu::launch::matrix;
use crate::gpu::{Gpu, TensorCores};
use crate::tensor::{DType, Tensor};

/// out (+)= alpha · sum · 1/(left · right), if the scales are given.
#[cube(launch)]
fn finish_kernel(
    sum: &[f32],
    left: &[f32],
    right: &[f32],
    out: &mut [f32],
    alpha: f32,
    #[comptime] scaled: (bool, bool),
    #[comptime] add: bool,
) {
    if ABSOLUTE_POS < out.len() {
        let mut value = alpha * sum[ABSOLUTE_POS];
        if comptime!(scaled.0) {
            value *= left[1];
        }
        if comptime!(scaled.1) {
            value *= right[1];
        }
        if comptime!(add) {
            value += out[ABSOLUTE_POS];
        }
        out[ABSOLUTE_POS] = value;
    }
}

/// out (+)= alpha · op(a) op(b).
#[allow(clippy::too_many_arguments)]
pub(super) fn product(
    gpu: &Gpu,
    op: &'static str,
    kind: TensorCores,
    (a, b): (Operand, Operand),
    size: Size,
    alpha: f32,
    add: bool,
    out: &mut Tensor,
) -> Result<()> {
    let left = narrow(gpu, op, kind, a.tensor)?;
    let right = narrow(gpu, op, kind, b.tensor)?;
    let as_is = alpha == 1.0 && !add && left.scale.is_none() && right.scale.is_none();
    let mut sum = if as_is { None } else { Some(gpu.empty_f32(op, &[size.rows, size.columns])?) };
    let target = sum.as_mut().unwrap_or(out);
    let narrowed = (Operand { tensor: &left.values, ..a }, Operand { tensor: &right.values, ..b });
    if !launch(gpu, op, kind, narrowed, size, target)? {
        // No tensor-core routine for this shape.
        return in_f32(gpu, op, (a, b), size, alpha, add, out);
    }
    let Some(sum) = sum else { return Ok(()) };
    let (count, dim) = gpu.elementwise(sum.len());
    let scaled = (left.scale.is_some(), right.scale.is_some());
    // What is not read is bound to something that is there.
    let scale = |narrow: &Narrow| gpu.input_f32(op, narrow.scale.as_ref().unwrap_or(&sum));
    let (left, right) = (scale(&left)?, scale(&right)?);
    let result = gpu.output_f32(op, out)?;
    finish_kernel::launch(gpu.client(), count, dim, gpu.input_f32(op, &sum)?, left, right, result, alpha, scaled, add);
    Ok(())
}

/// cubek's routine; whether it has one for the shape.
fn launch(
    gpu: &Gpu,
    op: &'static str,
    kind: TensorCores,
    (a, b): (Operand, Operand),
    Size { rows, depth, columns }: Size,
    out: &mut Tensor,
) -> Result<bool> {
    let (half, f32) = (ElemType::Float(kind.float()), ElemType::Float(FloatKind::F32));
    let operand = |x: Operand, rows: usize, columns: usize| {
        x.tensor.expect_type(op, kind.dtype())?;
        let strides = if x.transpose { [1, rows] } else { [columns, 1] };
        Ok::<_, TensorError>(InputBinding::new(matrix(gpu.handle(op, x.tensor)?, [rows, columns], strides), half))
    };
    let (left, right) = (operand(a, rows, depth)?, operand(b, depth, columns)?);
    // Refuses what is shared, as every kernel's output does.
    gpu.output_f32(op, out)?;
    let result = matrix(gpu.handle(op, out)?, [rows, columns], [columns, 1]);
    let mut types = MatmulElems::from_globals(&MatmulGlobalElems { lhs: half, rhs: half, out: f32 });
    let strategy = Strategy::SimpleCyclicCmma(Default::default());
    let launched =
        gpu.guarded(op, || launch_ref(&strategy.into(), gpu.client(), left, right, result, &mut types).is_ok())?;
    Ok(launched)
}

/// On plain units, operands widened where they are narrow already.
fn in_f32(
    gpu: &Gpu,
    op: &'static str,
    (a, b): (Operand, Operand),
    size: Size,
    alpha: f32,
    add: bool,
    out: &mut Tensor,
) -> Result<()> {
    let widened = |x: &Tensor| {
        if x.dtype() == DType::F32 { Ok(x.clone()) } else { super::narrow::widen(gpu, op, x, 0..x.rows()) }
    };
    let (left, right) = (widened(a.tensor)?, widened(b.tensor)?);
    let operands = (Operand { tensor: &left, ..a }, Operand { tensor: &right, ..b });
    tiled::product(gpu, op, operands, size, alpha, add, out)
}
