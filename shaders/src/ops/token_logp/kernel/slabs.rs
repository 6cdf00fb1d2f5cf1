//! A slab of the vocabulary at a time, for a head whose weight is too large to be
//! unpacked whole.
//!
//! A slab's logits go when its part in each row's statistics is known: the parts
//! are joined by the running largest logit, as in online softmax (Milakov and
//! Gimelshein, 2018). The gradient needs the whole row's log-sum-exp, so a second
//! walk over the slabs computes the logits again. Each slab is unpacked once a
//! walk, whatever the chunks of rows.

use std::ops::Range;

use cubecl::prelude::*;

use super::{Back, chunk_rows, differentiate, logits_of, part_of, row_parts, write_statistics};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops::Head;
use crate::ops::gather::kernel::{add_at, copy_at};
use crate::ops::linear::kernel::operand_rows;
use crate::ops::matmul::kernel::{Operand, product};
use crate::tensor::{DType, Tensor};

/// What is kept of a row from slab to slab: the largest logit, the three sums of
/// [`row_parts`], the target's logit.
const RUNNING: usize = 5;

/// Joins a slab's part to rows `first..` of `running [M, 5]`.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn join_kernel(
    logits: &[f32],
    targets: &[u32],
    running: &mut [f32],
    first: usize,
    rows: usize,
    first_column: usize,
    columns: usize,
    #[comptime] units: usize,
) {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let row = CUBE_POS;
    if row < rows {
        let base = row * columns;
        let (max, sum, weighted, total) = row_parts(logits, base, columns, &mut shared, units);
        if UNIT_POS == 0 {
            let at = RUNNING * (first + row);
            let target = targets[first + row] as usize;
            if target >= first_column && target - first_column < columns {
                running[at + 4] = logits[base + target - first_column];
            }
            if first_column == 0 {
                running[at] = max;
                running[at + 1] = sum;
                running[at + 2] = weighted;
                running[at + 3] = total;
            } else {
                let before = running[at];
                // NaN on either side makes a sum NaN.
                let largest = select(max > before, max, before);
                let (old_sum, old_weighted) = rebased(running[at + 1], running[at + 2], before - largest);
                let (new_sum, new_weighted) = rebased(sum, weighted, max - largest);
                running[at] = largest;
                running[at + 1] = old_sum + new_sum;
                running[at + 2] = old_weighted + new_weighted;
                running[at + 3] += total;
            }
        }
    }
}

/// The sums of e^x and of e^x x, each x moved by `shift`.
#[cube]
fn rebased(sum: f32, weighted: f32, shift: f32) -> (f32, f32) {
    let factor = shift.exp();
    let mut moved = 0.0f32;
    // e^x x is 0 for x so small that e^x is.
    if factor != 0.0f32 {
        moved = factor * (weighted + shift * sum);
    }
    (factor * sum, moved)
}

/// One unit a row: its statistics from what was kept.
#[cube(launch)]
fn finish_kernel(running: &[f32], statistics: &mut [f32], rows: usize, vocabulary: usize) {
    if ABSOLUTE_POS < rows {
        let at = RUNNING * ABSOLUTE_POS;
        let parts = (running[at], running[at + 1], running[at + 2], running[at + 3]);
        write_statistics(statistics, ABSOLUTE_POS, parts, running[at + 4], vocabulary);
    }
}

/// Rows of h that are worked on together, and the gradient that adds up for them.
struct Chunk {
    first: usize,
    h: Tensor,
    dh: Option<Tensor>,
}

/// Writes `statistics [M, 5]`, and where wanted the gradients.
#[allow(clippy::too_many_arguments)]
pub(super) fn run(
    gpu: &Gpu,
    op: &'static str,
    h: &Tensor,
    head: &Head,
    targets: &Tensor,
    slabs: &[Range<usize>],
    statistics: &mut Tensor,
    back: Option<&mut Back>,
) -> Result<()> {
    let (m, v) = (h.rows(), head.weight.shape()[0]);
    let widest = slabs.iter().map(Range::len).max().unwrap_or(v);
    let most = chunk_rows(head.chunk_rows, m, widest);
    let chunk = |first| Ok(Chunk { first, h: part_of(gpu, op, h, first, most.min(m - first))?, dh: None });
    let mut chunks = (0..m).step_by(most).map(chunk).collect::<Result<Vec<Chunk>>>()?;

    let mut running = gpu.empty_f32(op, &[m, RUNNING])?;
    for slab in slabs {
        let w = operand_rows(gpu, op, head.weight, slab.clone())?;
        for chunk in &chunks {
            let logits = logits_of(gpu, op, &chunk.h, &w, head.softcap)?;
            let (count, dim, units) = gpu.by_row(chunk.h.rows(), slab.len());
            join_kernel::launch(
                gpu.client(),
                count,
                dim,
                gpu.input_f32(op, &logits)?,
                gpu.input(op, targets, DType::U32)?,
                gpu.output_f32(op, &mut running)?,
                chunk.first,
                chunk.h.rows(),
                slab.start,
                slab.len(),
                units,
            );
        }
    }
    let (count, dim) = gpu.elementwise(m);
    let kept = gpu.input_f32(op, &running)?;
    finish_kernel::launch(gpu.client(), count, dim, kept, gpu.output_f32(op, statistics)?, m, v);
    match back {
        Some(back) => gradients(gpu, op, head, targets, slabs, statistics, &mut chunks, back),
        None => Ok(()),
    }
}

#[allow(clippy::too_many_arguments)]
fn gradients(
    gpu: &Gpu,
    op: &'static str,
    head: &Head,
    targets: &Tensor,
    slabs: &[Range<usize>],
    statistics: &Tensor,
    chunks: &mut [Chunk],
    back: &mut Back,
) -> Result<()> {
    let c = back.dh.columns();
    for slab in slabs {
        let w = operand_rows(gpu, op, head.weight, slab.clone())?;
        let mut dw = match back.dweight {
            Some(_) => Some(gpu.empty_f32(op, &[slab.len(), c])?),
            None => None,
        };
        for chunk in chunks.iter_mut() {
            let at = (chunk.first, slab.start);
            let mut logits = logits_of(gpu, op, &chunk.h, &w, head.softcap)?;
            differentiate(gpu, op, &mut logits, at, targets, statistics, &back.coefficients, head)?;
            let plain = |tensor| Operand { tensor, transpose: false };
            let (mut dh, add) = gpu.accumulator(op, &[chunk.h.rows(), c], chunk.dh.take())?;
            product(gpu, op, plain(&logits), plain(&w), 1.0, add, &mut dh)?;
            chunk.dh = Some(dh);
            if let Some(dw) = &mut dw {
                let logits = Operand { tensor: &logits, transpose: true };
                product(gpu, op, logits, plain(&chunk.h), 1.0, chunk.first > 0, dw)?;
            }
        }
        if let (Some(dw), Some(dweight)) = (&dw, back.dweight.as_deref_mut()) {
            add_at(gpu, op, dw, dweight, slab.start * c)?;
        }
    }
    for chunk in chunks {
        if let Some(dh) = &chunk.dh {
            copy_at(gpu, op, (dh, 0), (&mut back.dh, chunk.first * c), dh.len())?;
        }
    }
    Ok(())
}
