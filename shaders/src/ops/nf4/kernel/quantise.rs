//! Quantising on the device, one unit a block: the host's bits.
//!
//! A device may flush subnormal numbers to zero, and its division may be off by
//! some units in the last place. So a block's largest magnitude is found among
//! bits, its reciprocal by a long division of integers, and both the number and
//! the reciprocal are first scaled by the power of two that brings the largest
//! to [1, 2): what is left is one product of numbers of common size, which every
//! device rounds to nearest, and comparisons with constants. No difference from
//! the host remains possible.
//!
//! The mean of the scales alone is the host's: it is a sum in PyTorch's order,
//! over a sixty-fourth of the numbers, and read back for it they cost nothing.

use std::ops::Range;

use cubecl::prelude::*;

use super::super::reference::{self, PADDING, QuantisedScales, dynamic_map};
use super::super::{BLOCK, NESTED_BLOCK, Nf4Weight, Scales, thresholds};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::tensor::{DType, Tensor};

/// The bits of +∞; those of NaN's magnitude are above.
const INFINITY: u32 = 0x7f80_0000;
/// Magnitudes up to 2⁻¹²⁸ have an infinite reciprocal.
const INFINITE_RECIPROCAL: u32 = 0x0020_0000;
/// The code of 0.
const ZERO: u32 = PADDING as u32;

/// The power of two of a magnitude that is neither 0 nor infinite.
#[cube]
fn exponent(magnitude: u32) -> i32 {
    let mut exponent = i32::cast_from(magnitude >> 23u32) - 127;
    if magnitude < 0x0080_0000u32 {
        // Subnormal: a multiple of 2⁻¹⁴⁹.
        exponent = i32::cast_from(u32::reinterpret(f32::cast_from(magnitude)) >> 23u32) - 127 - 149;
    }
    exponent
}

/// The 23 bits behind the leading one.
#[cube]
fn fraction(magnitude: u32) -> u32 {
    let mut bits = magnitude;
    if magnitude < 0x0080_0000u32 {
        bits = u32::reinterpret(f32::cast_from(magnitude));
    }
    bits & 0x007f_ffffu32
}

/// x · 2^−exponent of the bits of a number that is at most about 2^exponent; so
/// small a number that it would be subnormal is 0.
#[cube]
fn scaled(bits: u32, largest_exponent: i32) -> f32 {
    let magnitude = bits & 0x7fff_ffffu32;
    let mut scaled = 0.0f32;
    if magnitude != 0u32 {
        let field = exponent(magnitude) - largest_exponent + 127;
        if field > 0 {
            let sign = bits & 0x8000_0000u32;
            scaled = f32::reinterpret(sign | (u32::cast_from(field) << 23u32) | fraction(magnitude));
        }
    }
    scaled
}

/// 2^exponent times the host's reciprocal of a magnitude.
#[cube]
fn scaled_reciprocal(magnitude: u32) -> f32 {
    let fraction = fraction(magnitude);
    let mut reciprocal = 1.0f32;
    if fraction != 0u32 {
        // 2⁴⁷ / divisor has 24 bits. Of a magnitude above 2¹²⁶ the reciprocal is
        // subnormal and has fewer.
        let mut digits = 24u32;
        if magnitude >= 0x7e80_0000u32 {
            digits = 23u32;
        }
        if magnitude >= 0x7f00_0000u32 {
            digits = 22u32;
        }
        let divisor = fraction | 0x0080_0000u32;
        let mut rest = 0x0080_0000u32;
        let mut quotient = 0u32;
        for digit in 0..24u32 {
            if digit < digits {
                rest *= 2u32;
                quotient *= 2u32;
                if rest >= divisor {
                    rest -= divisor;
                    quotient += 1u32;
                }
            }
        }
        // The divisor is no power of two, so the rest is never one half.
        if 2u32 * rest > divisor {
            quotient += 1u32;
        }
        // A quotient of fewer digits counts larger units; both factors are exact.
        let shifted = quotient << (24u32 - digits);
        reciprocal = f32::cast_from(shifted) * comptime!(1.0f32 / 16_777_216.0);
    }
    reciprocal
}

/// How many thresholds x reaches.
#[cube]
fn nearest(x: f32) -> u32 {
    let mut code = 0u32;
    #[unroll]
    for below in 0..15usize {
        if x >= comptime!(thresholds::of_codes()[below]) {
            code += 1u32;
        }
    }
    code
}

/// The code of a number in a block whose largest magnitude is given, with its
/// power of two and its scaled reciprocal.
#[cube]
fn code(bits: u32, largest: u32, exponent: i32, reciprocal: f32) -> u32 {
    let magnitude = bits & 0x7fff_ffffu32;
    let mut code = 0u32;
    if largest == 0u32 {
        code = ZERO;
    } else if largest == INFINITY {
        // A finite number times 0; ∞ times 0 is NaN, which has code 0.
        code = select(magnitude == INFINITY, 0u32, ZERO);
    } else if largest <= INFINITE_RECIPROCAL {
        // ±∞; 0 times ∞ is NaN.
        code = select(bits > 0u32 && bits < 0x8000_0000u32, 15u32, 0u32);
    } else if largest < INFINITY {
        code = nearest(scaled(bits, exponent) * reciprocal);
    }
    code
}

/// A piece of a weight, from block `first_block` on. Numbers travel as bits.
#[cube(launch)]
fn quantise_kernel(x: &[u32], packed: &mut [u32], absmax: &mut [u32], first_block: usize) {
    let from = ABSOLUTE_POS * BLOCK;
    if from < x.len() {
        let mut largest = 0u32;
        for i in 0..BLOCK {
            if from + i < x.len() {
                let magnitude = x[from + i] & 0x7fff_ffffu32;
                // Of several NaN the last stays, as on the host.
                if magnitude > INFINITY || (largest <= INFINITY && magnitude > largest) {
                    largest = magnitude;
                }
            }
        }
        absmax[first_block + ABSOLUTE_POS] = largest;
        let mut power = 0i32;
        let mut reciprocal = 0.0f32;
        if largest > INFINITE_RECIPROCAL && largest < INFINITY {
            power = exponent(largest);
            reciprocal = scaled_reciprocal(largest);
        }
        for word in 0..comptime!(BLOCK / 8) {
            let first = from + 8 * word;
            if first < x.len() {
                let mut bits = 0u32;
                #[unroll]
                for i in 0..8usize {
                    // The first element of a byte is in its high nibble.
                    let shift = comptime!((8 * (i / 2) + if i % 2 == 0 { 4 } else { 0 }) as u32);
                    if first + i < x.len() {
                        bits |= code(x[first + i], largest, power, reciprocal) << shift;
                    } else if comptime!(i % 2 == 1) && first + i == x.len() {
                        bits |= comptime!(ZERO << shift);
                    }
                }
                packed[(first_block * BLOCK + first) / 8] = bits;
            }
        }
    }
}

/// Quantises the scales, one unit a nested block. The scales and their mean are
/// of common size, so that no difference is subnormal.
#[cube(launch)]
fn nest_kernel(scales: &[f32], thresholds: &[f32], codes: &mut [u32], absmax: &mut [f32], offset: f32) {
    let from = ABSOLUTE_POS * NESTED_BLOCK;
    if from < scales.len() {
        let mut largest = 0u32;
        for i in 0..NESTED_BLOCK {
            if from + i < scales.len() {
                let magnitude = u32::reinterpret(scales[from + i] - offset) & 0x7fff_ffffu32;
                if magnitude > largest {
                    largest = magnitude;
                }
            }
        }
        absmax[ABSOLUTE_POS] = f32::reinterpret(largest);
        let mut power = 0i32;
        let mut reciprocal = 0.0f32;
        if largest > 0u32 {
            power = exponent(largest);
            reciprocal = scaled_reciprocal(largest);
        }
        for word in 0..comptime!(NESTED_BLOCK / 4) {
            let first = from + 4 * word;
            if first < scales.len() {
                let mut bits = 0u32;
                #[unroll]
                for i in 0..4usize {
                    if first + i < scales.len() {
                        let centred = u32::reinterpret(scales[first + i] - offset);
                        let code = nearest_of(thresholds, scaled(centred, power) * reciprocal);
                        bits |= code << comptime!(8 * i as u32);
                    }
                }
                codes[first / 4] = bits;
            }
        }
    }
}

/// How many of 255 ascending thresholds x reaches.
#[cube]
fn nearest_of(thresholds: &[f32], x: f32) -> u32 {
    let mut count = 0u32;
    #[unroll]
    for halving in 0..8u32 {
        let step = comptime!(128u32 >> halving);
        if x >= thresholds[(count + step - 1u32) as usize] {
            count += step;
        }
    }
    count
}

/// Quantises a weight of which `piece` gives ranges of the flattened elements, in
/// f32 on the device. A piece is dropped before the next is asked for, so the
/// weight never lies whole on the device in f32.
pub(crate) fn by_pieces(
    gpu: &Gpu,
    op: &'static str,
    shape: &[usize],
    double_quant: bool,
    mut piece: impl FnMut(Range<usize>) -> Result<Tensor>,
) -> Result<Nf4Weight> {
    let elements: usize = shape.iter().product();
    let blocks = elements.div_ceil(BLOCK);
    let mut packed = gpu.empty(op, &[elements.div_ceil(2)], DType::U8)?;
    let mut absmax = gpu.empty_f32(op, &[blocks])?;
    let most = gpu.piece_elements() / BLOCK * BLOCK;
    for from in (0..elements).step_by(most.max(BLOCK)) {
        let x = piece(from..elements.min(from + most.max(BLOCK)))?;
        let (count, dim) = gpu.elementwise(x.len().div_ceil(BLOCK));
        quantise_kernel::launch(
            gpu.client(),
            count,
            dim,
            gpu.input_f32(op, &x)?,
            gpu.output(op, &mut packed, DType::U8)?,
            gpu.output_f32(op, &mut absmax)?,
            from / BLOCK,
        );
    }
    let scales = if double_quant { nest(gpu, op, &absmax)? } else { Scales::Plain(absmax) };
    Ok(Nf4Weight { shape: shape.to_vec(), packed, scales })
}

fn nest(gpu: &Gpu, op: &'static str, scales: &Tensor) -> Result<Scales> {
    let on_host = gpu.read_f32(op, scales)?;
    let offset = reference::mean(&on_host);
    let code = gpu.upload_f32(op, &[256], &dynamic_map())?;
    // Differences of extreme scales may be subnormal, or none: no model has them.
    if !(2f32.powi(-100)..2f32.powi(100)).contains(&offset) {
        let QuantisedScales::Nested { codes, absmax, offset } = reference::nest(&on_host) else {
            return Err(gpu.failed(op, "scales were not nested"));
        };
        let codes = gpu.upload_bytes(op, &[codes.len()], DType::U8, &codes)?;
        return Ok(Scales::Nested { codes, absmax: gpu.upload_f32(op, &[absmax.len()], &absmax)?, code, offset });
    }
    let blocks = on_host.len();
    let mut codes = gpu.empty(op, &[blocks], DType::U8)?;
    let mut absmax = gpu.empty_f32(op, &[blocks.div_ceil(NESTED_BLOCK)])?;
    let thresholds = gpu.upload_f32(op, &[255], thresholds::of_map())?;
    let (count, dim) = gpu.elementwise(absmax.len());
    nest_kernel::launch(
        gpu.client(),
        count,
        dim,
        gpu.input_f32(op, scales)?,
        gpu.input_f32(op, &thresholds)?,
        gpu.output(op, &mut codes, DType::U8)?,
        gpu.output_f32(op, &mut absmax)?,
        offset,
    );
    Ok(Scales::Nested { codes, absmax, code, offset })
}
