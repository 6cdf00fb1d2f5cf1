//! Tiles of queries against tiles of keys as register-tiled products
//! (FlashAttention-2), in at most 16 KiB of shared memory: no matrix of all
//! scores exists. A tile lies in one document, and tiles that no query of the
//! tile sees are skipped.
//!
//! A head of any width is staged 32 columns at a time, so that the width
//! decides only how many sums a unit keeps; wider heads have shorter tiles.

mod backward;
mod forward;
mod tile;

use cubecl::CubeDim;
use cubecl::prelude::BufferArg;

use super::{check, check_cached};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::launch::{argument, grid};
use crate::ops::{AttentionSpec, Segments};
use crate::tensor::{DType, Tensor};
use tile::{Shape, UNITS};

/// Numbers that a unit keeps of its rows' sums, about: what fits in registers
/// beside the rest.
const SUMS: usize = 64;

/// Rows of a unit so that `sums` sums of a row each stay in registers.
fn rows(dim: usize, sums: usize) -> usize {
    let row = dim.div_ceil(32) * 4 * sums;
    [4, 2].into_iter().find(|rows| rows * row <= SUMS).unwrap_or(1)
}

fn shape(spec: &AttentionSpec, rows: usize) -> Shape {
    Shape { dim: spec.head_dim, rows, capped: spec.softcap.is_some() }
}

/// Elements of a load: heads of a multiple of four columns begin at one.
fn width(spec: &AttentionSpec) -> usize {
    if spec.head_dim.is_multiple_of(4) { 4 } else { 1 }
}

fn input(gpu: &Gpu, op: &'static str, x: &Tensor, width: usize) -> Result<BufferArg> {
    x.expect_type(op, DType::F32)?;
    Ok(argument(gpu.handle(op, x)?, x.len() / width))
}

fn output(gpu: &Gpu, op: &'static str, x: &mut Tensor, width: usize) -> Result<BufferArg> {
    // Refuses what is shared, as every kernel's output does.
    gpu.output_f32(op, x)?;
    input(gpu, op, x, width)
}

/// Tiles of `size` tokens of each document, as (first, count, document's
/// bounds), those with most before (or, for keys, after) them first, so that
/// the cubes end together.
fn tiles(segments: &Segments, size: usize, keys: bool) -> Vec<(usize, usize, std::ops::Range<usize>)> {
    let mut tiles: Vec<_> = segments
        .ranges()
        .flat_map(|range| {
            let end = range.end;
            range.clone().step_by(size).map(move |first| (first, size.min(end - first), range.clone()))
        })
        .collect();
    tiles
        .sort_by_key(|(first, _, range)| std::cmp::Reverse(if keys { range.end - first } else { first - range.start }));
    tiles
}

fn query_tiles(gpu: &Gpu, op: &'static str, segments: &Segments, shape: Shape) -> Result<Tensor> {
    let tiles = tiles(segments, shape.tile(), false);
    let words: Vec<u32> = tiles.into_iter().flat_map(|(first, count, of)| [first, count, of.start]).map(word).collect();
    gpu.indices(op, &words)
}

fn key_tiles(gpu: &Gpu, op: &'static str, segments: &Segments, shape: Shape) -> Result<Tensor> {
    let tiles = tiles(segments, shape.tile(), true);
    let words = tiles.into_iter().flat_map(|(first, count, of)| [first, count, of.start, of.end]).map(word);
    gpu.indices(op, &words.collect::<Vec<u32>>())
}

/// A place in a buffer, whose elements a kernel counts in u32.
fn word(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

pub(crate) fn forward(
    gpu: &Gpu,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    segments: &Segments,
    spec: &AttentionSpec,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "attention";
    check(OP, q, k, v, segments, spec)?;
    launch_forward(gpu, OP, q, k, v, segments, 0, spec)
}

pub(crate) fn cached(
    gpu: &Gpu,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    length: usize,
    spec: &AttentionSpec,
) -> Result<Tensor> {
    const OP: &str = "attention_cached";
    let n = check_cached(OP, q, k, v, length, spec)?;
    let queries = Segments::from_lengths([n]);
    Ok(launch_forward(gpu, OP, q, k, v, &queries, length - n, spec)?.0)
}

/// Query row i stands at key `offset + i`.
#[allow(clippy::too_many_arguments)]
fn launch_forward(
    gpu: &Gpu,
    op: &'static str,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    segments: &Segments,
    offset: usize,
    spec: &AttentionSpec,
) -> Result<(Tensor, Tensor)> {
    let n = segments.tokens();
    let mut out = gpu.empty_f32(op, q.shape())?;
    let mut lse = gpu.empty_f32(op, &[n, spec.heads])?;
    if n == 0 {
        return Ok((out, lse));
    }
    // A decoding step has a query or a few: their tile need not be tall.
    let tall = segments.longest().div_ceil(8).next_power_of_two();
    let shape = shape(spec, rows(spec.head_dim, 1).min(tall));
    let tiles = query_tiles(gpu, op, segments, shape)?;
    let cubes = tiles.len() / 3 * spec.heads;
    let width = width(spec);
    forward::forward_kernel::launch(
        gpu.client(),
        grid(cubes),
        CubeDim::new_1d(UNITS as u32),
        width,
        input(gpu, op, q, width)?,
        input(gpu, op, k, width)?,
        input(gpu, op, v, width)?,
        gpu.input(op, &tiles, DType::U32)?,
        output(gpu, op, &mut out, width)?,
        gpu.output_f32(op, &mut lse)?,
        cubes,
        spec.heads,
        spec.heads / spec.kv_heads,
        offset,
        window(spec, n + offset),
        spec.scale,
        spec.softcap.unwrap_or(1.0),
        shape,
    );
    Ok((out, lse))
}

/// A window of all the tokens is none.
fn window(spec: &AttentionSpec, tokens: usize) -> usize {
    spec.window.map_or(tokens, |window| window.min(tokens))
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(
    gpu: &Gpu,
    dout: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    segments: &Segments,
    spec: &AttentionSpec,
) -> Result<(Tensor, Tensor, Tensor)> {
    const OP: &str = "attention_backward";
    check(OP, q, k, v, segments, spec)?;
    dout.expect_shape(OP, q.shape())?;
    out.expect_shape(OP, q.shape())?;
    let n = segments.tokens();
    lse.expect_shape(OP, &[n, spec.heads])?;
    let mut dq = gpu.empty_f32(OP, q.shape())?;
    let (mut dk, mut dv) = (gpu.empty_f32(OP, k.shape())?, gpu.empty_f32(OP, v.shape())?);
    if n == 0 {
        return Ok((dq, dk, dv));
    }
    let width = width(spec);
    let (group, window) = (spec.heads / spec.kv_heads, window(spec, n));
    let (scale, cap) = (spec.scale, spec.softcap.unwrap_or(1.0));
    let units = CubeDim::new_1d(UNITS as u32);

    let mut numbers = gpu.empty_f32(OP, &[n, spec.heads, 2])?;
    let (count, dim) = gpu.elementwise(n * spec.heads);
    backward::rows_kernel::launch(
        gpu.client(),
        count,
        dim,
        width,
        input(gpu, OP, dout, width)?,
        input(gpu, OP, out, width)?,
        gpu.input_f32(OP, lse)?,
        gpu.output_f32(OP, &mut numbers)?,
        spec.head_dim / width,
    );

    let queries = shape(spec, rows(spec.head_dim, 1));
    let tiles = query_tiles(gpu, OP, segments, queries)?;
    let cubes = tiles.len() / 3 * spec.heads;
    backward::queries_kernel::launch(
        gpu.client(),
        grid(cubes),
        units,
        width,
        input(gpu, OP, dout, width)?,
        input(gpu, OP, q, width)?,
        input(gpu, OP, k, width)?,
        input(gpu, OP, v, width)?,
        gpu.input_f32(OP, &numbers)?,
        gpu.input(OP, &tiles, DType::U32)?,
        output(gpu, OP, &mut dq, width)?,
        cubes,
        spec.heads,
        group,
        window,
        scale,
        cap,
        queries,
    );

    let keys = shape(spec, rows(spec.head_dim, 2));
    let tiles = key_tiles(gpu, OP, segments, keys)?;
    let cubes = tiles.len() / 4 * spec.kv_heads;
    backward::keys_kernel::launch(
        gpu.client(),
        grid(cubes),
        units,
        width,
        input(gpu, OP, dout, width)?,
        input(gpu, OP, q, width)?,
        input(gpu, OP, k, width)?,
        input(gpu, OP, v, width)?,
        gpu.input_f32(OP, &numbers)?,
        gpu.input(OP, &tiles, DType::U32)?,
        output(gpu, OP, &mut dk, width)?,
        output(gpu, OP, &mut dv, width)?,
        cubes,
        spec.heads,
        group,
        window,
        scale,
        cap,
        keys,
    );
    Ok((dq, dk, dv))
}
