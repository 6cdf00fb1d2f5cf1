//! One unit a pair, in place.

use cubecl::prelude::*;

use super::check;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops::RotaryTable;
use crate::tensor::{DType, Tensor};

#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn rotary_kernel(
    x: &mut [f32],
    positions: &[u32],
    cos: &[f32],
    sin: &[f32],
    sign: f32,
    columns: usize,
    head_dim: usize,
    half: usize,
) {
    let heads = columns / head_dim;
    let row = ABSOLUTE_POS / (heads * half);
    if row < positions.len() {
        let head = ABSOLUTE_POS / half % heads;
        let i = ABSOLUTE_POS % half;
        let angle = positions[row] as usize * half + i;
        let (c, s) = (cos[angle], sin[angle] * sign);
        let low = row * columns + head * head_dim + i;
        let a = x[low];
        let b = x[low + half];
        x[low] = a * c - b * s;
        x[low + half] = b * c + a * s;
    }
}

pub(crate) fn rotary(
    gpu: &Gpu,
    x: &mut Tensor,
    positions: &[u32],
    table: &RotaryTable,
    head_dim: usize,
    inverse: bool,
) -> Result<()> {
    const OP: &str = "rotary";
    check(x, positions, table, head_dim)?;
    if x.is_empty() {
        return Ok(());
    }
    let (columns, half) = (x.columns(), table.rotary_dim / 2);
    let (count, dim) = gpu.elementwise(x.rows() * (columns / head_dim) * half);
    let list = gpu.indices(OP, positions)?;
    let (cos, sin) = (gpu.input_f32(OP, &table.cos)?, gpu.input_f32(OP, &table.sin)?);
    let list = gpu.input(OP, &list, DType::U32)?;
    let sign = if inverse { -1.0 } else { 1.0 };
    rotary_kernel::launch(
        gpu.client(),
        count,
        dim,
        gpu.output_f32(OP, x)?,
        list,
        cos,
        sin,
        sign,
        columns,
        head_dim,
        half,
    );
    Ok(())
}
