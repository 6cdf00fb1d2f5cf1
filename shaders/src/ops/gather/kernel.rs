//! One unit an element. Rows that several indices name are added up by one
//! unit in the order of the indices, so the sum depends on nothing else.

use cubecl::prelude::*;

use super::{check_indices, check_rows, check_write, sorted};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::tensor::{DType, Tensor};

#[cube(launch)]
fn gather_kernel(x: &[f32], indices: &[u32], y: &mut [f32], columns: usize, scale: f32) {
    if ABSOLUTE_POS < y.len() {
        let row = indices[ABSOLUTE_POS / columns] as usize;
        y[ABSOLUTE_POS] = x[row * columns + ABSOLUTE_POS % columns] * scale;
    }
}

/// The same from a table of bf16, two in a word.
#[cube(launch)]
fn gather_bf16_kernel(x: &[u32], indices: &[u32], y: &mut [f32], columns: usize, scale: f32) {
    if ABSOLUTE_POS < y.len() {
        let row = indices[ABSOLUTE_POS / columns] as usize;
        let at = row * columns + ABSOLUTE_POS % columns;
        let word = x[at / 2];
        let half = select(at % 2 == 1, word & 0xffff_0000u32, word << 16u32);
        y[ABSOLUTE_POS] = f32::reinterpret(half) * scale;
    }
}

/// `groups [G, 3]`: a row of out, and where in `places` the rows of dy begin
/// and end that are added to it.
#[cube(launch)]
fn scatter_kernel(dy: &[f32], groups: &[u32], places: &[u32], out: &mut [f32], columns: usize, scale: f32) {
    let group = ABSOLUTE_POS / columns;
    if group < groups.len() / 3 {
        let column = ABSOLUTE_POS % columns;
        let row = groups[3 * group] as usize;
        let first = groups[3 * group + 1] as usize;
        let end = groups[3 * group + 2] as usize;
        let mut sum = 0.0f32;
        for place in first..end {
            sum += dy[places[place] as usize * columns + column];
        }
        out[row * columns + column] += sum * scale;
    }
}

#[cube(launch)]
fn copy_at_kernel(from: &[f32], to: &mut [f32], from_first: usize, to_first: usize, length: usize) {
    if ABSOLUTE_POS < length {
        to[to_first + ABSOLUTE_POS] = from[from_first + ABSOLUTE_POS];
    }
}

#[cube(launch)]
fn add_at_kernel(from: &[f32], to: &mut [f32], first: usize) {
    if ABSOLUTE_POS < from.len() {
        to[first + ABSOLUTE_POS] += from[ABSOLUTE_POS];
    }
}

/// Rows of `x` (f32 or bf16) at `indices`, times `scale`.
pub(crate) fn rows(gpu: &Gpu, op: &'static str, x: &Tensor, indices: &[u32], scale: f32) -> Result<Tensor> {
    check_indices(op, indices, x.rows())?;
    let columns = x.columns();
    let mut y = gpu.empty_f32(op, &[indices.len(), columns])?;
    if y.is_empty() {
        return Ok(y);
    }
    let list = gpu.indices(op, indices)?;
    let list = gpu.input(op, &list, DType::U32)?;
    let (count, dim) = gpu.elementwise(y.len());
    let out = gpu.output_f32(op, &mut y)?;
    if x.dtype() == DType::Bf16 {
        gather_bf16_kernel::launch(gpu.client(), count, dim, gpu.input(op, x, DType::Bf16)?, list, out, columns, scale);
    } else {
        gather_kernel::launch(gpu.client(), count, dim, gpu.input_f32(op, x)?, list, out, columns, scale);
    }
    Ok(y)
}

/// The most bytes of the lists by which [`add_rows`] sorts so many indices: a place per
/// index, and a row with its range of places per group.
pub(crate) fn sorted_index_bytes(indices: usize) -> u64 {
    (4 * 4 * indices) as u64
}

/// out's rows at `indices` += scale · dy's rows.
pub(crate) fn add_rows(
    gpu: &Gpu,
    op: &'static str,
    indices: &[u32],
    dy: &Tensor,
    scale: f32,
    out: &mut Tensor,
) -> Result<()> {
    check_indices(op, indices, out.rows())?;
    check_rows(op, indices, dy)?;
    let columns = out.columns();
    dy.expect_shape(op, &[indices.len(), columns])?;
    if dy.is_empty() {
        return Ok(());
    }
    let order = sorted(indices);
    let places: Vec<u32> = order.iter().map(|(_, place)| *place).collect();
    let mut groups: Vec<u32> = Vec::new();
    for (at, (row, _)) in order.iter().enumerate() {
        let at = at as u32;
        match groups.as_mut_slice() {
            [.., known, _, end] if known == row => *end = at + 1,
            _ => groups.extend([*row, at, at + 1]),
        }
    }
    let (count, dim) = gpu.elementwise(groups.len() / 3 * columns);
    let groups = gpu.upload_bytes(op, &[groups.len()], DType::U32, bytemuck::cast_slice(&groups))?;
    let places = gpu.upload_bytes(op, &[places.len()], DType::U32, bytemuck::cast_slice(&places))?;
    scatter_kernel::launch(
        gpu.client(),
        count,
        dim,
        gpu.input_f32(op, dy)?,
        gpu.input(op, &groups, DType::U32)?,
        gpu.input(op, &places, DType::U32)?,
        gpu.output_f32(op, out)?,
        columns,
        scale,
    );
    Ok(())
}

pub(crate) fn scatter_rows(gpu: &Gpu, rows: usize, indices: &[u32], dy: &Tensor) -> Result<Tensor> {
    const OP: &str = "scatter_rows";
    let mut out = gpu.zeros_f32(OP, &[rows, dy.columns()])?;
    add_rows(gpu, OP, indices, dy, 1.0, &mut out)?;
    Ok(out)
}

/// `to[to_first..][..length] = from[from_first..][..length]`, in elements.
pub(crate) fn copy_at(
    gpu: &Gpu,
    op: &'static str,
    (from, from_first): (&Tensor, usize),
    (to, to_first): (&mut Tensor, usize),
    length: usize,
) -> Result<()> {
    let (from, to) = (gpu.input_f32(op, from)?, gpu.output_f32(op, to)?);
    if length > 0 {
        let (count, dim) = gpu.elementwise(length);
        copy_at_kernel::launch(gpu.client(), count, dim, from, to, from_first, to_first, length);
    }
    Ok(())
}

/// `to[first..] += from`, in elements.
pub(crate) fn add_at(gpu: &Gpu, op: &'static str, from: &Tensor, to: &mut Tensor, first: usize) -> Result<()> {
    let (count, dim) = gpu.elementwise(from.len());
    let (elements, from) = (from.len(), gpu.input_f32(op, from)?);
    let to = gpu.output_f32(op, to)?;
    if elements > 0 {
        add_at_kernel::launch(gpu.client(), count, dim, from, to, first);
    }
    Ok(())
}

pub(crate) fn write_rows(gpu: &Gpu, cache: &mut Tensor, at: usize, rows: &Tensor) -> Result<()> {
    const OP: &str = "write_rows";
    check_write(OP, cache, at, rows)?;
    let first = at * cache.columns();
    copy_at(gpu, OP, (rows, 0), (cache, first), rows.len())
}
