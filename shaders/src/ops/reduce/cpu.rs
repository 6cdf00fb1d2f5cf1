//! Sums of fixed pieces in f64, added in order.

use crate::cpu::{Cpu, PIECE, simd};
use crate::error::Result;
use crate::tensor::Tensor;

const LANES: usize = 32;

/// Σ x² of a piece.
fn piece_sum(x: &[f32]) -> f64 {
    simd::dispatch(
        #[inline(always)]
        || {
            let mut lanes = [0.0f64; LANES];
            let mut chunks = x.chunks_exact(LANES);
            for x in chunks.by_ref() {
                for i in 0..LANES {
                    let value = f64::from(x[i]);
                    lanes[i] += value * value;
                }
            }
            for (lane, x) in lanes.iter_mut().zip(chunks.remainder()) {
                *lane += f64::from(*x) * f64::from(*x);
            }
            lanes.iter().sum()
        },
    )
}

pub(crate) fn sum_squares(cpu: &Cpu, tensors: &[&Tensor]) -> Result<f64> {
    const OP: &str = "sum_squares";
    let mut slices = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        slices.push(cpu.f32(OP, tensor)?);
    }
    let pieces: Vec<&[f32]> = slices.iter().flat_map(|x| x.chunks(PIECE)).collect();
    let mut sums = vec![0.0f64; pieces.len()];
    cpu.workers.each(sums.chunks_mut(8).zip(pieces.chunks(8)), |(sums, pieces)| {
        for (sum, piece) in sums.iter_mut().zip(pieces) {
            *sum = piece_sum(piece);
        }
    });
    Ok(sums.iter().sum())
}
