//! Pieces of each tensor a cube each, in f32; the pieces' sums are added up on
//! the host in f64.

use cubecl::prelude::*;

use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::cube::cube_sum;
use crate::tensor::Tensor;

/// Elements of a piece: sixteen a unit, so that what f32 loses is small.
const PIECE: usize = 4096;

#[cube(launch)]
fn sum_squares_kernel(x: &[f32], sums: &mut [f32], first: usize, pieces: usize, #[comptime] units: usize) {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let piece = CUBE_POS;
    if piece < pieces {
        let mut sum = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < PIECE {
            let at = piece * PIECE + i;
            if at < x.len() {
                sum += x[at] * x[at];
            }
            i += units;
        }
        let total = cube_sum(sum, &mut shared, units);
        if UNIT_POS == 0 {
            sums[first + piece] = total;
        }
    }
}

pub(crate) fn sum_squares(gpu: &Gpu, tensors: &[&Tensor]) -> Result<f64> {
    const OP: &str = "sum_squares";
    let total: usize = tensors.iter().map(|x| x.len().div_ceil(PIECE)).sum();
    if total == 0 {
        return Ok(0.0);
    }
    let mut sums = gpu.empty_f32(OP, &[total])?;
    let mut first = 0;
    for x in tensors.iter().filter(|x| !x.is_empty()) {
        let pieces = x.len().div_ceil(PIECE);
        let (count, dim, units) = gpu.by_row(pieces, PIECE);
        let out = gpu.output_f32(OP, &mut sums)?;
        sum_squares_kernel::launch(gpu.client(), count, dim, gpu.input_f32(OP, x)?, out, first, pieces, units);
        first += pieces;
    }
    Ok(gpu.read_f32(OP, &sums)?.iter().map(|sum| f64::from(*sum)).sum())
}
