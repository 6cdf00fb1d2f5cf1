//! Copies of rows over the threads; sums go by output row, so no two threads
//! add to the same place.

use super::{between, check_indices, check_rows, check_write, sorted};
use crate::cpu::{Cpu, piece_rows, simd};
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn gather_rows(cpu: &Cpu, x: &Tensor, indices: &[u32]) -> Result<Tensor> {
    const OP: &str = "gather_rows";
    check_indices(OP, indices, x.rows())?;
    let columns = x.columns();
    let mut y = cpu.empty_f32(OP, &[indices.len(), columns])?;
    let x = cpu.f32(OP, x)?;
    let block = piece_rows(columns);
    let pieces = cpu.f32_mut(OP, &mut y)?.chunks_mut((block * columns).max(1)).zip(indices.chunks(block));
    cpu.workers.each(pieces, |(y, indices)| {
        for (y, index) in y.chunks_exact_mut(columns).zip(indices) {
            y.copy_from_slice(&x[*index as usize * columns..][..columns]);
        }
    });
    Ok(y)
}

pub(crate) fn scatter_rows(cpu: &Cpu, rows: usize, indices: &[u32], dy: &Tensor) -> Result<Tensor> {
    const OP: &str = "scatter_rows";
    check_indices(OP, indices, rows)?;
    check_rows(OP, indices, dy)?;
    let columns = dy.columns();
    let mut y = cpu.empty_f32(OP, &[rows, columns])?;
    let dy = cpu.f32(OP, dy)?;
    let order = sorted(indices);
    let block = piece_rows(columns);
    cpu.workers.each(cpu.f32_mut(OP, &mut y)?.chunks_mut((block * columns).max(1)).enumerate(), |(piece, y)| {
        y.fill(0.0);
        let from = piece * block;
        for (index, place) in between(&order, from, from + block) {
            let y = &mut y[(*index as usize - from) * columns..][..columns];
            let dy = &dy[*place as usize * columns..][..columns];
            simd::dispatch(
                #[inline(always)]
                || simd::add_scaled(y, dy, 1.0),
            );
        }
    });
    Ok(y)
}

pub(crate) fn write_rows(cpu: &Cpu, cache: &mut Tensor, at: usize, rows: &Tensor) -> Result<()> {
    const OP: &str = "write_rows";
    check_write(OP, cache, at, rows)?;
    let from = at * cache.columns();
    let rows = cpu.f32(OP, rows)?;
    cpu.f32_mut(OP, cache)?[from..from + rows.len()].copy_from_slice(rows);
    Ok(())
}
