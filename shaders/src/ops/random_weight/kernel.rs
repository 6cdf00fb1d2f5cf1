//! One unit a block of four elements. What is quantised is made a piece at a time.

use cubecl::prelude::*;

use super::check;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::philox::philox;
use crate::ops::nf4::kernel::quantise::by_pieces;
use crate::ops::{Weight, WeightKind};
use crate::random::Key;
use crate::tensor::{DType, Tensor};

/// 24 bits of a word as a number in [−scale, scale).
#[cube]
fn uniform(word: u32, scale: f32) -> f32 {
    let signed = f32::cast_from(i32::cast_from(word >> 8u32) - 8_388_608);
    signed * comptime!(1.0f32 / 8_388_608.0) * scale
}

/// Elements from number `4 · first_block` of the stream on.
#[cube(launch)]
fn uniform_kernel(y: &mut [f32], first_block: u32, scale: f32, step: u32, place: u32, seed_low: u32, seed_high: u32) {
    let at = 4 * ABSOLUTE_POS;
    if at < y.len() {
        let block = first_block + ABSOLUTE_POS as u32;
        let (w0, w1, w2, w3) = philox(block, step, place, seed_low, seed_high);
        y[at] = uniform(w0, scale);
        if at + 1 < y.len() {
            y[at + 1] = uniform(w1, scale);
        }
        if at + 2 < y.len() {
            y[at + 2] = uniform(w2, scale);
        }
        if at + 3 < y.len() {
            y[at + 3] = uniform(w3, scale);
        }
    }
}

/// The upper half of a finite number's bits, to nearest, ties to even.
#[cube]
fn half(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    (bits + 0x7fffu32 + ((bits >> 16u32) & 1u32)) >> 16u32
}

/// The same in bf16, two in a word; a last element alone leaves its word's other
/// half zero.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn uniform_bf16_kernel(
    y: &mut [u32],
    elements: usize,
    scale: f32,
    step: u32,
    place: u32,
    seed_low: u32,
    seed_high: u32,
) {
    let at = 4 * ABSOLUTE_POS;
    if at < elements {
        let (w0, w1, w2, w3) = philox(ABSOLUTE_POS as u32, step, place, seed_low, seed_high);
        let mut low = half(uniform(w0, scale));
        if at + 1 < elements {
            low |= half(uniform(w1, scale)) << 16u32;
        }
        y[at / 2] = low;
        if at + 2 < elements {
            let mut high = half(uniform(w2, scale));
            if at + 3 < elements {
                high |= half(uniform(w3, scale)) << 16u32;
            }
            y[at / 2 + 1] = high;
        }
    }
}

pub(crate) fn random_weight(gpu: &Gpu, shape: &[usize], scale: f32, key: Key, kind: WeightKind) -> Result<Weight> {
    const OP: &str = "random_weight";
    check(shape, scale)?;
    let (low, high) = (key.seed as u32, (key.seed >> 32) as u32);
    let fill = |y: &mut Tensor, first: usize| -> Result<()> {
        if !y.is_empty() {
            let (count, dim) = gpu.elementwise(y.len().div_ceil(4));
            let out = gpu.output_f32(OP, y)?;
            let block = (first / 4) as u32;
            uniform_kernel::launch(gpu.client(), count, dim, out, block, scale, key.step, key.place, low, high);
        }
        Ok(())
    };
    match kind {
        WeightKind::F32 => {
            let mut y = gpu.empty_f32(OP, shape)?;
            fill(&mut y, 0)?;
            Ok(Weight::Dense(y))
        }
        WeightKind::Bf16 => {
            let mut y = gpu.empty(OP, shape, DType::Bf16)?;
            if !y.is_empty() {
                let elements = y.len();
                let (count, dim) = gpu.elementwise(elements.div_ceil(4));
                let out = gpu.output(OP, &mut y, DType::Bf16)?;
                let client = gpu.client();
                uniform_bf16_kernel::launch(client, count, dim, out, elements, scale, key.step, key.place, low, high);
            }
            Ok(Weight::Dense(y))
        }
        WeightKind::Nf4 { double_quant } => Ok(Weight::Nf4(by_pieces(gpu, OP, shape, double_quant, |range| {
            // Pieces begin with a block of the weight, and so with one of the stream.
            let mut y = gpu.empty_f32(OP, &[range.len()])?;
            fill(&mut y, range.start)?;
            Ok(y)
        })?)),
    }
}
