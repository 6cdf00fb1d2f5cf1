//! Products in f32 on plain units. Any shape, either side transposed.

use cubecl::prelude::*;

use super::{Operand, Size};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::tensor::Tensor;

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

/// out (+)= alpha · op(a) op(b), operands in f32.
pub(super) fn product(
    gpu: &Gpu,
    op: &'static str,
    (a, b): (Operand, Operand),
    Size { rows, depth, columns }: Size,
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
