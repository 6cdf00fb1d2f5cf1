//! One unit a block of four elements of the host's random words, so that a run
//! goes on elsewhere with the same masks.

use cubecl::prelude::*;

use super::check;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::philox::philox;
use crate::random::Key;
use crate::tensor::Tensor;

#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn dropout_kernel(x: &[f32], y: &mut [f32], p: f32, scale: f32, step: u32, place: u32, seed_low: u32, seed_high: u32) {
    let first = 4 * ABSOLUTE_POS;
    if first < y.len() {
        let (c0, c1, c2, c3) = philox(ABSOLUTE_POS as u32, step, place, seed_low, seed_high);
        write(x, y, first, c0, p, scale);
        write(x, y, first + 1, c1, p, scale);
        write(x, y, first + 2, c2, p, scale);
        write(x, y, first + 3, c3, p, scale);
    }
}

#[cube]
fn write(x: &[f32], y: &mut [f32], at: usize, word: u32, p: f32, scale: f32) {
    if at < y.len() {
        // 24 bits of the word as a number in [0, 1).
        let unit = f32::cast_from(word >> 8u32) * (1.0f32 / 16_777_216.0f32);
        let mut kept = x[at] * scale;
        if unit < p {
            kept = 0.0f32;
        }
        y[at] = kept;
    }
}

pub(crate) fn dropout(gpu: &Gpu, x: &Tensor, p: f32, key: Key) -> Result<Tensor> {
    const OP: &str = "dropout";
    check(p)?;
    let mut y = gpu.empty_f32(OP, x.shape())?;
    if !x.is_empty() {
        let (count, dim) = gpu.elementwise(x.len().div_ceil(4));
        let (low, high) = (key.seed as u32, (key.seed >> 32) as u32);
        let (x, out) = (gpu.input_f32(OP, x)?, gpu.output_f32(OP, &mut y)?);
        dropout_kernel::launch(gpu.client(), count, dim, x, out, p, 1.0 / (1.0 - p), key.step, key.place, low, high);
    }
    Ok(y)
}
