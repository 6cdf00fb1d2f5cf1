//! Row-parallel; the backward pass goes by table row, so no two threads add to
//! the same place.

use crate::cpu::{Cpu, piece_rows, simd};
use crate::error::Result;
use crate::ops::gather::{between, check_indices, check_rows, sorted};
use crate::tensor::{DType, Tensor};

pub(crate) fn forward(cpu: &Cpu, ids: &[u32], table: &Tensor, scale: f32) -> Result<Tensor> {
    const OP: &str = "embedding";
    check_indices(OP, ids, table.rows())?;
    let columns = table.columns();
    let mut y = cpu.empty_f32(OP, &[ids.len(), columns])?;
    let block = piece_rows(columns);
    let pieces = cpu.f32_mut(OP, &mut y)?.chunks_mut((block * columns).max(1)).zip(ids.chunks(block));
    if table.dtype() == DType::Bf16 {
        let table = cpu.bf16(OP, table)?;
        cpu.workers.each(pieces, |(y, ids)| {
            for (y, id) in y.chunks_exact_mut(columns).zip(ids) {
                for (y, x) in y.iter_mut().zip(&table[*id as usize * columns..][..columns]) {
                    *y = x.to_f32() * scale;
                }
            }
        });
    } else {
        let table = cpu.f32(OP, table)?;
        cpu.workers.each(pieces, |(y, ids)| {
            for (y, id) in y.chunks_exact_mut(columns).zip(ids) {
                for (y, x) in y.iter_mut().zip(&table[*id as usize * columns..][..columns]) {
                    *y = x * scale;
                }
            }
        });
    }
    Ok(y)
}

pub(crate) fn backward(cpu: &Cpu, ids: &[u32], dy: &Tensor, scale: f32, dtable: &mut Tensor) -> Result<()> {
    const OP: &str = "embedding_backward";
    check_indices(OP, ids, dtable.rows())?;
    check_rows(OP, ids, dy)?;
    let columns = dtable.columns();
    dy.expect_shape(OP, &[ids.len(), columns])?;
    let dy = cpu.f32(OP, dy)?;
    let order = sorted(ids);
    let block = piece_rows(columns);
    cpu.workers.each(cpu.f32_mut(OP, dtable)?.chunks_mut((block * columns).max(1)).enumerate(), |(piece, dtable)| {
        let from = piece * block;
        for (id, place) in between(&order, from, from + block) {
            let dtable = &mut dtable[(*id as usize - from) * columns..][..columns];
            let dy = &dy[*place as usize * columns..][..columns];
            simd::dispatch(
                #[inline(always)]
                || simd::add_scaled(dtable, dy, scale),
            );
        }
    });
    Ok(())
}
