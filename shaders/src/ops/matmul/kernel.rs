//! Products by cubek: its tensor-core routine where the device has such
//! cores, its tiled routine on plain units where not.

use cubecl::ir::{ElemType, FloatKind};
use cubek::matmul::definition::MatmulElems;
use cubek::matmul::launch::launch_ref;
use cubek::matmul::multi_level::Strategy;
use cubek::std::InputBinding;

use super::check;
use crate::error::{Result, TensorError};
use crate::gpu::Gpu;
use crate::gpu::launch::matrix;
use crate::ops::elementwise;
use crate::tensor::{DType, Tensor};

/// A matrix as a product uses it.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub tensor: &'a Tensor,
    pub transpose: bool,
}

/// out `[rows, columns]` = op(a) op(b), overwritten.
pub(crate) fn product(gpu: &Gpu, op: &'static str, a: Operand, b: Operand, out: &mut Tensor) -> Result<()> {
    let (rows, depth, columns) = check(a.tensor, a.transpose, b.tensor, b.transpose)?;
    if rows * columns == 0 {
        return Ok(());
    }
    if depth == 0 {
        return elementwise::kernel::fill(gpu, op, out, 0.0);
    }
    let operand = |x: Operand, rows: usize, columns: usize| {
        x.tensor.expect_type(op, DType::F32)?;
        let strides = if x.transpose { [1, rows] } else { [columns, 1] };
        let binding = matrix(gpu.handle(op, x.tensor)?, [rows, columns], strides);
        Ok::<_, TensorError>(InputBinding::new(binding, ElemType::Float(FloatKind::F32)))
    };
    let (left, right) = (operand(a, rows, depth)?, operand(b, depth, columns)?);
    // Refuses what is shared, as every kernel's output does.
    gpu.output_f32(op, out)?;
    let result = matrix(gpu.handle(op, out)?, [rows, columns], [columns, 1]);
    let types = MatmulElems::from_single_dtype(ElemType::Float(FloatKind::F32));
    let mut reasons = Vec::new();
    for strategy in strategies(gpu) {
        let mut types = types.clone();
        let launched = gpu.guarded(op, || {
            launch_ref(&strategy.clone().into(), gpu.client(), left.clone(), right.clone(), result.clone(), &mut types)
        })?;
        match launched {
            Ok(()) => return Ok(()),
            Err(error) => reasons.push(format!("{strategy}: {error:?}")),
        }
    }
    Err(gpu.failed(op, format!("no product of [{rows}, {depth}] and [{depth}, {columns}]: {}", reasons.join("; "))))
}

/// Routines in the order in which they are tried.
fn strategies(gpu: &Gpu) -> Vec<Strategy> {
    let plain = [Strategy::SimpleUnit(Default::default()), Strategy::Naive];
    let cores = gpu.facts().tensor_cores.then(|| Strategy::SimpleCyclicCmma(Default::default()));
    cores.into_iter().chain(plain).collect()
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
    if let Some(into) = &into {
        into.expect_shape(op, &[rows, columns])?;
    }
    let mut out = gpu.empty_f32(op, &[rows, columns])?;
    product(gpu, op, a, b, &mut out)?;
    match into {
        Some(mut into) => {
            elementwise::kernel::add_scaled(gpu, &mut into, &out, alpha)?;
            Ok(into)
        }
        None => {
            if alpha != 1.0 {
                elementwise::kernel::scale(gpu, &mut out, alpha)?;
            }
            Ok(out)
        }
    }
}
