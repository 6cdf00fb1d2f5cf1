//! Sixteen blocks of four random words at a time, over the threads.

use super::check;
use crate::cpu::{Cpu, PIECE, simd};
use crate::error::Result;
use crate::ops::dropout::cpu::{BLOCKS, words};
use crate::ops::{Weight, WeightKind, nf4};
use crate::random::{Key, signed_unit};

pub(crate) fn random_weight(cpu: &Cpu, shape: &[usize], scale: f32, key: Key, kind: WeightKind) -> Result<Weight> {
    const OP: &str = "random_weight";
    check(shape, scale)?;
    let mut x = cpu.empty_f32(OP, shape)?;
    cpu.workers.each(cpu.f32_mut(OP, &mut x)?.chunks_mut(PIECE).enumerate(), |(piece, x)| {
        simd::dispatch(
            #[inline(always)]
            || {
                // PIECE is a multiple of a step, so a piece begins with one.
                let first = (piece * PIECE / 4) as u64;
                for (step, x) in x.chunks_mut(4 * BLOCKS).enumerate() {
                    let words = words(key, first + (step * BLOCKS) as u64);
                    for (x, word) in x.iter_mut().zip(words) {
                        *x = scale * signed_unit(word);
                    }
                }
            },
        );
    });
    match kind {
        WeightKind::F32 => Ok(Weight::Dense(x)),
        WeightKind::Bf16 => Ok(Weight::Dense(cpu.upload_half(shape, cpu.f32(OP, &x)?)?)),
        WeightKind::Nf4 { double_quant } => {
            Ok(Weight::Nf4(nf4::cpu::quantise(cpu, shape, cpu.f32(OP, &x)?, double_quant)?))
        }
    }
}
