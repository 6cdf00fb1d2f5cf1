//! Sixteen blocks of four random words at a time.

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
        simd::dispatch(
            #[inline(always)]
            || {
                // PIECE is a multiple of a step, so a piece begins with one.
                let first = (piece * PIECE / 4) as u64;
                for (step, (y, x)) in y.chunks_mut(4 * BLOCKS).zip(x.chunks(4 * BLOCKS)).enumerate() {
                    let words = words(key, first + (step * BLOCKS) as u64);
                    for ((y, x), word) in y.iter_mut().zip(x).zip(words) {
                        *y = if unit(word) < p { 0.0 } else { x * scale };
                    }
                }
            },
        );
    });
    Ok(y)
}

/// Blocks of random words made side by side.
pub(crate) const BLOCKS: usize = 16;

/// The words of the key's stream from block `first` on:
/// [`crate::random::philox`] in lanes.
#[inline(always)]
pub(crate) fn words(key: Key, first: u64) -> [u32; 4 * BLOCKS] {
    let mut c = [
        std::array::from_fn(|i| (first + i as u64) as u32),
        std::array::from_fn(|i| ((first + i as u64) >> 32) as u32),
        [key.step; BLOCKS],
        [key.place; BLOCKS],
    ];
    let (mut low, mut high) = (key.seed as u32, (key.seed >> 32) as u32);
    for _ in 0..10 {
        let [c0, c1, c2, c3] = c;
        for i in 0..BLOCKS {
            let a = u64::from(c0[i]) * 0xD251_1F53;
            let b = u64::from(c2[i]) * 0xCD9E_8D57;
            c[0][i] = (b >> 32) as u32 ^ c1[i] ^ low;
            c[1][i] = b as u32;
            c[2][i] = (a >> 32) as u32 ^ c3[i] ^ high;
            c[3][i] = a as u32;
        }
        low = low.wrapping_add(0x9E37_79B9);
        high = high.wrapping_add(0xBB67_AE85);
    }
    let mut words = [0; 4 * BLOCKS];
    for (words, i) in words.chunks_exact_mut(4).zip(0..BLOCKS) {
        words.copy_from_slice(&[c[0][i], c[1][i], c[2][i], c[3][i]]);
    }
    words
}
