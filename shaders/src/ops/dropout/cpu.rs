//! Four elements a block of random words.

use super::check;
use crate::cpu::{Cpu, PIECE, simd};
use crate::error::Result;
use crate::random::{Key, unit};
use crate::tensor::Tensor;

pub(crate) fn dropout(cpu: &Cpu, x: &Tensor, p: f32, key: Key) -> Result<Tensor> {
    const OP: &str = "dropout";
    check(p)?;
    let mut y = cpu.empty_f32(OP, x.shape())?;
    let x = cpu.f32(OP, x)?;
    let scale = 1.0 / (1.0 - p);
    let pieces = cpu.f32_mut(OP, &mut y)?.chunks_mut(PIECE).zip(x.chunks(PIECE)).enumerate();
    cpu.workers.each(pieces, |(piece, (y, x))| {
        simd::dispatch(|| {
            // PIECE is a multiple of four, so a piece begins with a block.
            let first = (piece * PIECE / 4) as u64;
            for (block, (y, x)) in y.chunks_mut(4).zip(x.chunks(4)).enumerate() {
                let words = key.block(first + block as u64);
                for ((y, x), word) in y.iter_mut().zip(x).zip(words) {
                    *y = if unit(word) < p { 0.0 } else { x * scale };
                }
            }
        });
    });
    Ok(y)
}
