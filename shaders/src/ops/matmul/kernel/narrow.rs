//! Numbers of 16 bits, two in a word: rounding to them and widening them again.
//!
//! By integer arithmetic on the bits, so that no kernel binds a 16-bit type and
//! every driver gives the same bits as the CPU.

use std::borrow::Cow;
use std::ops::Range;

use cubecl::prelude::*;

use crate::error::{Result, TensorError};
use crate::gpu::cube::cube_max;
use crate::gpu::{Gpu, TensorCores};
use crate::tensor::{DType, Tensor};

/// Elements of a piece that one cube looks through.
const PIECE: usize = 8192;

/// The bits of bf16, to nearest, ties to even.
#[cube]
pub(crate) fn bf16_bits(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    let rounded = (bits + 0x7fffu32 + ((bits >> 16u32) & 1u32)) >> 16u32;
    // NaN stays NaN, whatever its low bits.
    select((bits & 0x7fff_ffffu32) > 0x7f80_0000u32, (bits >> 16u32) | 0x40u32, rounded)
}

/// The bits of f16, to nearest, ties to even; beyond 65519 it is infinite.
#[cube]
pub(crate) fn f16_bits(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    let sign = (bits >> 16u32) & 0x8000u32;
    let size = bits & 0x7fff_ffffu32;
    // Below 2^-14: adding a half rounds to a multiple of 2^-24.
    let small = u32::reinterpret(f32::reinterpret(size) + 0.5f32) - 0x3f00_0000u32;
    let rebiased = select(size >= 0x3880_0000u32, size - 0x3800_0000u32, 0u32);
    let normal = (rebiased + 0xfffu32 + ((rebiased >> 13u32) & 1u32)) >> 13u32;
    let finite = select(size < 0x3880_0000u32, small, normal);
    let bounded = select(size >= 0x4780_0000u32, 0x7c00u32, finite);
    sign | select(size > 0x7f80_0000u32, 0x7e00u32, bounded)
}

/// The number that 16 bits of f16 are.
#[cube]
fn f16_value(half: u32) -> f32 {
    let sign = (half & 0x8000u32) << 16u32;
    let size = half & 0x7fffu32;
    // Below 2^-14 the bits count multiples of 2^-24.
    let small = u32::reinterpret(f32::cast_from(size) * 5.960_464_5e-8f32);
    let normal = (size << 13u32) + 0x3800_0000u32;
    let finite = select(size < 0x400u32, small, normal);
    f32::reinterpret(sign | select(size >= 0x7c00u32, (size << 13u32) | 0x7f80_0000u32, finite))
}

/// The bits of the cores' type.
#[cube]
pub(crate) fn narrow_bits(x: f32, #[comptime] kind: TensorCores) -> u32 {
    match comptime!(kind) {
        TensorCores::Bf16 => bf16_bits(x),
        TensorCores::F16 => f16_bits(x),
    }
}

/// Two elements a unit, times `scale[0]` where that is wanted.
#[cube(launch)]
fn narrow_kernel(x: &[f32], scale: &[f32], y: &mut [u32], #[comptime] scaled: bool, #[comptime] kind: TensorCores) {
    if ABSOLUTE_POS < y.len() {
        let at = 2 * ABSOLUTE_POS;
        let mut low = x[at];
        let mut high = 0.0f32;
        if at + 1 < x.len() {
            high = x[at + 1];
        }
        if comptime!(scaled) {
            low *= scale[0];
            high *= scale[0];
        }
        y[ABSOLUTE_POS] = narrow_bits(low, kind) | (narrow_bits(high, kind) << 16u32);
    }
}

/// Words of bf16, from one on, as words of another 16-bit type.
#[cube(launch)]
fn renarrow_kernel(x: &[u32], y: &mut [u32], from: usize, #[comptime] kind: TensorCores) {
    if ABSOLUTE_POS < y.len() {
        let word = x[from + ABSOLUTE_POS];
        let low = f32::reinterpret(word << 16u32);
        let high = f32::reinterpret(word & 0xffff_0000u32);
        y[ABSOLUTE_POS] = narrow_bits(low, kind) | (narrow_bits(high, kind) << 16u32);
    }
}

/// Elements `first..` of x.
#[cube(launch)]
fn widen_kernel(x: &[u32], y: &mut [f32], first: usize, #[comptime] kind: TensorCores) {
    if ABSOLUTE_POS < y.len() {
        let at = first + ABSOLUTE_POS;
        let word = x[at / 2];
        let high = at % 2 == 1;
        y[ABSOLUTE_POS] = match comptime!(kind) {
            TensorCores::Bf16 => f32::reinterpret(select(high, word & 0xffff_0000u32, word << 16u32)),
            TensorCores::F16 => f16_value(select(high, word >> 16u32, word & 0xffffu32)),
        };
    }
}

/// The largest |x| of each piece.
#[cube(launch)]
fn largest_kernel(x: &[f32], largest: &mut [f32], #[comptime] piece: usize, #[comptime] units: usize) {
    let mut shared = Shared::<[f32]>::new_slice(units);
    if CUBE_POS < largest.len() {
        let mut most = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < piece {
            let at = CUBE_POS * piece + i;
            if at < x.len() {
                let size = x[at].abs();
                if size > most {
                    most = size;
                }
            }
            i += units;
        }
        let most = cube_max(most, &mut shared, units);
        if UNIT_POS == 0 {
            largest[CUBE_POS] = most;
        }
    }
}

/// The power of two that brings the largest of these to 2^14..2^15, and its
/// inverse; 1 if nothing is to be scaled.
#[cube(launch)]
fn scale_kernel(largest: &[f32], scale: &mut [f32], #[comptime] units: usize) {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let mut most = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < largest.len() {
        if largest[i] > most {
            most = largest[i];
        }
        i += units;
    }
    let most = cube_max(most, &mut shared, units);
    if UNIT_POS == 0 {
        let exponent = u32::reinterpret(most) >> 23u32;
        // 268 - e is the exponent of 2^(14 + 127 - e); both it and its inverse
        // must be normal numbers.
        let bounded = select(exponent < 16u32, 16u32, exponent);
        let usual = most > 0.0f32 && exponent < 255u32;
        scale[0] = select(usual, f32::reinterpret((268u32 - bounded) << 23u32), 1.0f32);
        scale[1] = select(usual, f32::reinterpret((bounded - 14u32) << 23u32), 1.0f32);
    }
}

/// An operand as tensor cores take it.
pub(super) struct Narrow<'a> {
    pub values: Cow<'a, Tensor>,
    /// `[2]`: what the values were multiplied by, and its inverse.
    pub scale: Option<Tensor>,
}

/// Rounds an operand in f32; one in the cores' type is taken as it is.
pub(super) fn narrow<'a>(gpu: &Gpu, op: &'static str, kind: TensorCores, x: &'a Tensor) -> Result<Narrow<'a>> {
    if x.dtype() == kind.dtype() {
        return Ok(Narrow { values: Cow::Borrowed(x), scale: None });
    }
    let scale = match kind {
        TensorCores::Bf16 => None,
        TensorCores::F16 => Some(scale_of(gpu, op, x)?),
    };
    let mut values = gpu.empty(op, x.shape(), kind.dtype())?;
    let (count, dim) = gpu.elementwise(x.len().div_ceil(2));
    let input = gpu.input_f32(op, x)?;
    let factor = gpu.input_f32(op, scale.as_ref().unwrap_or(x))?;
    let out = gpu.output(op, &mut values, kind.dtype())?;
    narrow_kernel::launch(gpu.client(), count, dim, input, factor, out, scale.is_some(), kind);
    Ok(Narrow { values: Cow::Owned(values), scale })
}

fn scale_of(gpu: &Gpu, op: &'static str, x: &Tensor) -> Result<Tensor> {
    let mut largest = gpu.empty_f32(op, &[x.len().div_ceil(PIECE)])?;
    let (count, dim, units) = gpu.by_row(largest.len(), PIECE);
    let out = gpu.output_f32(op, &mut largest)?;
    largest_kernel::launch(gpu.client(), count, dim, gpu.input_f32(op, x)?, out, PIECE, units);
    let mut scale = gpu.empty_f32(op, &[2])?;
    let (count, dim, units) = gpu.by_row(1, largest.len());
    let out = gpu.output_f32(op, &mut scale)?;
    scale_kernel::launch(gpu.client(), count, dim, gpu.input_f32(op, &largest)?, out, units);
    Ok(scale)
}

/// Rows of bf16 in the cores' type; the first begins a word. Weights are taken
/// unscaled: those that f16 has no number for are smaller than 2^-25.
pub(crate) fn renarrow(
    gpu: &Gpu,
    op: &'static str,
    kind: TensorCores,
    x: &Tensor,
    rows: Range<usize>,
) -> Result<Tensor> {
    let mut y = gpu.empty(op, &[rows.len(), x.columns()], kind.dtype())?;
    if !y.is_empty() {
        let (count, dim) = gpu.elementwise(y.len().div_ceil(2));
        let input = gpu.input(op, x, DType::Bf16)?;
        let out = gpu.output(op, &mut y, kind.dtype())?;
        renarrow_kernel::launch(gpu.client(), count, dim, input, out, rows.start * x.columns() / 2, kind);
    }
    Ok(y)
}

/// Rows of 16-bit numbers in f32.
pub(crate) fn widen(gpu: &Gpu, op: &'static str, x: &Tensor, rows: Range<usize>) -> Result<Tensor> {
    let kind = match x.dtype() {
        DType::Bf16 => TensorCores::Bf16,
        DType::F16 => TensorCores::F16,
        other => return Err(TensorError::Type { op, expected: "bf16 or f16", got: other.name() }),
    };
    let mut y = gpu.empty_f32(op, &[rows.len(), x.columns()])?;
    if !y.is_empty() {
        let (count, dim) = gpu.elementwise(y.len());
        let input = gpu.input(op, x, x.dtype())?;
        let out = gpu.output_f32(op, &mut y)?;
        widen_kernel::launch(gpu.client(), count, dim, input, out, rows.start * x.columns(), kind);
    }
    Ok(y)
}
