//! Products: cubek's tensor-core routine where the device has such cores, a
//! tiled routine on plain units where not. Any shape, either side transposed.

use cubecl::prelude::*;

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

/// Rows and columns of a cube's tile, and the depth of a step.
const TILE: usize = 64;
const STEP: usize = 16;
/// Units of a cube, each with eight rows by four columns of the tile.
const UNITS: usize = 128;
const UNIT_ROWS: usize = 8;
const UNIT_COLUMNS: usize = 4;
/// Elements from one depth of a tile to the next.
const PITCH: usize = TILE + 4;

/// out (+)= alpha · op(a) op(b), on plain units: both tiles through shared
/// memory, the sums in registers, in the order of the depth.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn tiled_kernel(
    a: &[f32],
    b: &[f32],
    out: &mut [f32],
    rows: usize,
    depth: usize,
    columns: usize,
    alpha: f32,
    #[comptime] transpose_a: bool,
    #[comptime] transpose_b: bool,
    #[comptime] add: bool,
) {
    let mut left = Shared::<[f32]>::new_slice(comptime!(STEP * PITCH));
    let mut right = Shared::<[f32]>::new_slice(comptime!(STEP * PITCH));
    let unit = UNIT_POS as usize;
    let first_row = CUBE_POS_Y as usize * TILE;
    let first_column = CUBE_POS_X as usize * TILE;
    let unit_row = unit / 16 * UNIT_ROWS;
    let unit_column = unit % 16 * UNIT_COLUMNS;
    let mut sums = Array::<f32>::new(comptime!(UNIT_ROWS * UNIT_COLUMNS));
    #[unroll]
    for i in 0..comptime!(UNIT_ROWS * UNIT_COLUMNS) {
        sums[i] = 0.0f32;
    }
    let mut first_depth = 0usize;
    while first_depth < depth {
        #[unroll]
        for i in 0..comptime!(TILE * STEP / UNITS) {
            let at = unit + i * UNITS;
            // Neighbouring units read neighbouring elements.
            let (row, k) = if comptime!(transpose_a) { (at % TILE, at / TILE) } else { (at / STEP, at % STEP) };
            let (m, d) = (first_row + row, first_depth + k);
            let mut value = 0.0f32;
            if m < rows && d < depth {
                value = if comptime!(transpose_a) { a[d * rows + m] } else { a[m * depth + d] };
            }
            left[k * PITCH + row] = value;
            let (column, k) = if comptime!(transpose_b) { (at / STEP, at % STEP) } else { (at % TILE, at / TILE) };
            let (n, d) = (first_column + column, first_depth + k);
            let mut value = 0.0f32;
            if n < columns && d < depth {
                value = if comptime!(transpose_b) { b[n * depth + d] } else { b[d * columns + n] };
            }
            right[k * PITCH + column] = value;
        }
        sync_cube();
        for k in 0..STEP {
            let mut values = Array::<f32>::new(comptime!(UNIT_COLUMNS));
            #[unroll]
            for j in 0..UNIT_COLUMNS {
                values[j] = right[k * PITCH + unit_column + j];
            }
            #[unroll]
            for i in 0..UNIT_ROWS {
                let value = left[k * PITCH + unit_row + i];
                #[unroll]
                for j in 0..UNIT_COLUMNS {
                    sums[i * UNIT_COLUMNS + j] += value * values[j];
                }
            }
        }
        sync_cube();
        first_depth += STEP;
    }
    #[unroll]
    for i in 0..UNIT_ROWS {
        #[unroll]
        for j in 0..UNIT_COLUMNS {
            let (m, n) = (first_row + unit_row + i, first_column + unit_column + j);
            if m < rows && n < columns {
                let value = alpha * sums[i * UNIT_COLUMNS + j];
                if comptime!(add) {
                    out[m * columns + n] += value;
                } else {
                    out[m * columns + n] = value;
                }
            }
        }
    }
}

/// out `[rows, columns]` = alpha · op(a) op(b), added to what is there where
/// `add` says.
pub(crate) fn product(
    gpu: &Gpu,
    op: &'static str,
    a: Operand,
    b: Operand,
    alpha: f32,
    add: bool,
    out: &mut Tensor,
) -> Result<()> {
    let (rows, depth, columns) = check(a.tensor, a.transpose, b.tensor, b.transpose)?;
    if rows * columns == 0 {
        return Ok(());
    }
    if depth == 0 {
        return if add { Ok(()) } else { elementwise::kernel::fill(gpu, op, out, 0.0) };
    }
    if let Some(kind) = gpu.facts().tensor_cores {
        return on_tensor_cores(gpu, op, kind, a, b, (rows, depth, columns), alpha, add, out);
    }
    tiled(gpu, op, a, b, (rows, depth, columns), alpha, add, out)
}

#[allow(clippy::too_many_arguments)]
fn tiled(
    gpu: &Gpu,
    op: &'static str,
    a: Operand,
    b: Operand,
    (rows, depth, columns): (usize, usize, usize),
    alpha: f32,
    add: bool,
    out: &mut Tensor,
) -> Result<()> {
    let (left, right) = (gpu.input_f32(op, a.tensor)?, gpu.input_f32(op, b.tensor)?);
    let result = gpu.output_f32(op, out)?;
    let tiles = (columns.div_ceil(TILE), rows.div_ceil(TILE));
    if tiles.0.max(tiles.1) > 65_535 {
        return Err(gpu.failed(op, format!("a product of {rows} by {columns} has too many tiles")));
    }
    tiled_kernel::launch(
        gpu.client(),
        CubeCount::Static(tiles.0 as u32, tiles.1 as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        left,
        right,
        result,
        rows,
        depth,
        columns,
        alpha,
        a.transpose,
        b.transpose,
        add,
    );
    Ok(())
}

/// By cubek: operands rounded to the cores' type on their way into shared
/// memory, sums in f32. Its routines overwrite: what is added goes through a
/// tensor of its own.
#[allow(clippy::too_many_arguments)]
fn on_tensor_cores(
    gpu: &Gpu,
    op: &'static str,
    kind: &'static str,
    a: Operand,
    b: Operand,
    (rows, depth, columns): (usize, usize, usize),
    alpha: f32,
    add: bool,
    out: &mut Tensor,
) -> Result<()> {
    let cores = ElemType::Float(if kind == "bf16" { FloatKind::BF16 } else { FloatKind::TF32 });
    let f32 = ElemType::Float(FloatKind::F32);
    let operand = |x: Operand, rows: usize, columns: usize| {
        x.tensor.expect_type(op, DType::F32)?;
        let strides = if x.transpose { [1, rows] } else { [columns, 1] };
        Ok::<_, TensorError>(InputBinding::new(matrix(gpu.handle(op, x.tensor)?, [rows, columns], strides), f32))
    };
    let (left, right) = (operand(a, rows, depth)?, operand(b, depth, columns)?);
    let mut sum = if add { Some(gpu.empty_f32(op, &[rows, columns])?) } else { None };
    let target = sum.as_mut().unwrap_or(out);
    // Refuses what is shared, as every kernel's output does.
    gpu.output_f32(op, target)?;
    let result = matrix(gpu.handle(op, target)?, [rows, columns], [columns, 1]);
    let mut types = MatmulElems {
        lhs_stage: cores,
        rhs_stage: cores,
        lhs_register: cores,
        rhs_register: cores,
        ..MatmulElems::from_single_dtype(f32)
    };
    let strategy = Strategy::SimpleCyclicCmma(Default::default());
    let launched = gpu.guarded(op, || {
        launch_ref(&strategy.into(), gpu.client(), left, right, result, &mut types)
            .map_err(|error| format!("{error:?}"))
    })?;
    if launched.is_err() {
        // No tensor-core routine for this shape.
        return tiled(gpu, op, a, b, (rows, depth, columns), alpha, add, out);
    }
    match sum {
        Some(sum) => elementwise::kernel::add_scaled(gpu, out, &sum, alpha),
        None if alpha != 1.0 => elementwise::kernel::scale(gpu, out, alpha),
        None => Ok(()),
    }
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
