//! Unpacking a weight on the device, one unit a word of eight elements.

pub(crate) mod quantise;

use std::ops::Range;

use cubecl::prelude::*;

use super::{BLOCK, CODEBOOK, NESTED_BLOCK, Nf4Weight, Scales, check};
use crate::error::Result;
use crate::gpu::{Gpu, TensorCores};
use crate::ops::matmul::kernel::narrow::narrow_bits;
use crate::tensor::{DType, Tensor};

/// Words of a block.
const WORDS: usize = BLOCK / 8;

/// The codes' values follow from their bits alone, so no table is bound:
/// comparisons select one of sixteen constants.
#[cube]
fn code(nibble: u32) -> f32 {
    let mut value = 0.0f32;
    #[unroll]
    for i in 0..16u32 {
        if nibble == i {
            value = comptime!(CODEBOOK[i as usize]);
        }
    }
    value
}

/// One byte of words.
#[cube]
fn byte(words: &[u32], at: usize) -> u32 {
    (words[at / 4] >> (8u32 * (at % 4) as u32)) & 255u32
}

/// Elements `first..` of the flattened weight, from the word on that holds the
/// first.
#[cube(launch)]
fn unpack_kernel(packed: &[u32], scales: &[f32], y: &mut [f32], first: usize) {
    let at = first / 8 + ABSOLUTE_POS;
    if 8 * at < first + y.len() {
        unpack_word(packed[at], scales[at / WORDS], 8 * at, first, y);
    }
}

#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn unpack_nested_kernel(
    packed: &[u32],
    codes: &[u32],
    absmax: &[f32],
    map: &[f32],
    offset: f32,
    y: &mut [f32],
    first: usize,
) {
    let at = first / 8 + ABSOLUTE_POS;
    if 8 * at < first + y.len() {
        let block = at / WORDS;
        let scale = map[byte(codes, block) as usize] * absmax[block / NESTED_BLOCK] + offset;
        unpack_word(packed[at], scale, 8 * at, first, y);
    }
}

/// Elements `from..from + 8`, those of them that y has.
#[cube]
fn unpack_word(word: u32, scale: f32, from: usize, first: usize, y: &mut [f32]) {
    #[unroll]
    for i in 0..8usize {
        // The first element of a byte is in its high nibble.
        let shift = comptime!((8 * (i / 2) + if i % 2 == 0 { 4 } else { 0 }) as u32);
        if from + i >= first && from + i - first < y.len() {
            y[from + i - first] = code((word >> shift) & 15u32) * scale;
        }
    }
}

/// As [`unpack_kernel`], to words of two 16-bit numbers, from a whole word on.
#[cube(launch)]
fn unpack_narrow_kernel(packed: &[u32], scales: &[f32], y: &mut [u32], from: usize, #[comptime] kind: TensorCores) {
    let first = 4 * ABSOLUTE_POS;
    if first < y.len() {
        let at = from + ABSOLUTE_POS;
        narrow_word(packed[at], scales[at / WORDS], first, y, kind);
    }
}

/// As [`unpack_nested_kernel`], to words of two 16-bit numbers.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn unpack_nested_narrow_kernel(
    packed: &[u32],
    codes: &[u32],
    absmax: &[f32],
    map: &[f32],
    offset: f32,
    y: &mut [u32],
    from: usize,
    #[comptime] kind: TensorCores,
) {
    let first = 4 * ABSOLUTE_POS;
    if first < y.len() {
        let at = from + ABSOLUTE_POS;
        let block = at / WORDS;
        let scale = map[byte(codes, block) as usize] * absmax[block / NESTED_BLOCK] + offset;
        narrow_word(packed[at], scale, first, y, kind);
    }
}

#[cube]
fn narrow_word(word: u32, scale: f32, first: usize, y: &mut [u32], #[comptime] kind: TensorCores) {
    #[unroll]
    for i in 0..4usize {
        // The first element of a byte is in its high nibble.
        let shift = comptime!((8 * i) as u32);
        if first + i < y.len() {
            let low = code((word >> (shift + 4u32)) & 15u32) * scale;
            let high = code((word >> shift) & 15u32) * scale;
            y[first + i] = narrow_bits(low, kind) | (narrow_bits(high, kind) << 16u32);
        }
    }
}

/// Uploads a piece at a time and quantises it there.
pub(crate) fn upload(gpu: &Gpu, shape: &[usize], values: &[f32], double_quant: bool) -> Result<Nf4Weight> {
    const OP: &str = "upload_nf4";
    check(shape, values.len())?;
    quantise::by_pieces(gpu, OP, shape, double_quant, |range| gpu.upload_f32(OP, &[range.len()], &values[range]))
}

/// Rows of the weight in f32: a scratch that the caller drops after one product.
pub(crate) fn unpack(gpu: &Gpu, op: &'static str, w: &Nf4Weight, rows: Range<usize>) -> Result<Tensor> {
    let columns: usize = w.shape[1..].iter().product();
    let first = rows.start * columns;
    let mut y = gpu.empty_f32(op, &[rows.len(), columns])?;
    if y.is_empty() {
        return Ok(y);
    }
    let (count, dim) = gpu.elementwise((first + y.len()).div_ceil(8) - first / 8);
    let packed = gpu.input(op, &w.packed, DType::U8)?;
    let out = gpu.output_f32(op, &mut y)?;
    match &w.scales {
        Scales::Plain(absmax) => {
            unpack_kernel::launch(gpu.client(), count, dim, packed, gpu.input_f32(op, absmax)?, out, first);
        }
        Scales::Nested { codes, absmax, code, offset } => {
            let codes = gpu.input(op, codes, DType::U8)?;
            let (absmax, code) = (gpu.input_f32(op, absmax)?, gpu.input_f32(op, code)?);
            unpack_nested_kernel::launch(gpu.client(), count, dim, packed, codes, absmax, code, *offset, out, first);
        }
    }
    Ok(y)
}

/// As [`unpack`], in the type of the tensor cores: half the scratch. The first
/// row's first element must be the first of a word of eight.
pub(crate) fn unpack_narrow(
    gpu: &Gpu,
    op: &'static str,
    kind: TensorCores,
    w: &Nf4Weight,
    rows: Range<usize>,
) -> Result<Tensor> {
    let columns: usize = w.shape[1..].iter().product();
    let from = rows.start * columns / 8;
    let mut y = gpu.empty(op, &[rows.len(), columns], kind.dtype())?;
    if y.is_empty() {
        return Ok(y);
    }
    let (count, dim) = gpu.elementwise(y.len().div_ceil(8));
    let packed = gpu.input(op, &w.packed, DType::U8)?;
    let out = gpu.output(op, &mut y, kind.dtype())?;
    let client = gpu.client();
    match &w.scales {
        Scales::Plain(absmax) => {
            let absmax = gpu.input_f32(op, absmax)?;
            unpack_narrow_kernel::launch(client, count, dim, packed, absmax, out, from, kind);
        }
        Scales::Nested { codes, absmax, code, offset } => {
            let codes = gpu.input(op, codes, DType::U8)?;
            let (absmax, code) = (gpu.input_f32(op, absmax)?, gpu.input_f32(op, code)?);
            unpack_nested_narrow_kernel::launch(
                client, count, dim, packed, codes, absmax, code, *offset, out, from, kind,
            );
        }
    }
    Ok(y)
}
