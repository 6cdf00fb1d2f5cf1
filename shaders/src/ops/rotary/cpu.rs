//! Row-parallel, in place.

use super::check;
use crate::cpu::{Cpu, piece_rows, simd};
use crate::error::Result;
use crate::ops::RotaryTable;
use crate::tensor::Tensor;

pub(crate) fn rotary(
    cpu: &Cpu,
    x: &mut Tensor,
    positions: &[u32],
    table: &RotaryTable,
    head_dim: usize,
    inverse: bool,
) -> Result<()> {
    const OP: &str = "rotary";
    check(x, positions, table, head_dim)?;
    let half = table.rotary_dim / 2;
    let (cos, sin) = (cpu.f32(OP, &table.cos)?, cpu.f32(OP, &table.sin)?);
    let sign = if inverse { -1.0 } else { 1.0 };
    let columns = x.columns();
    let block = piece_rows(columns);
    let pieces = cpu.f32_mut(OP, x)?.chunks_mut(block * columns).zip(positions.chunks(block));
    cpu.workers.each(pieces, |(x, positions)| {
        simd::dispatch(
            #[inline(always)]
            || {
                for (row, position) in x.chunks_exact_mut(columns).zip(positions) {
                    let cos = &cos[*position as usize * half..][..half];
                    let sin = &sin[*position as usize * half..][..half];
                    for head in row.chunks_exact_mut(head_dim) {
                        let (low, high) = head.split_at_mut(half);
                        for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                            let s = s * sign;
                            let (x, y) = (*a, *b);
                            *a = x * c - y * s;
                            *b = y * c + x * s;
                        }
                    }
                }
            },
        );
    });
    Ok(())
}
