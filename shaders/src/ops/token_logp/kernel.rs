//! A chunk of rows at a time: the logits by a product, then one cube a row for
//! the statistics, then one unit a logit for its derivative, in place, and two
//! products back. The statistics cross to the host once, at the end.
//!
//! Where the head's weight does not fit unpacked into one panel, [`slabs`] of the
//! vocabulary take its place.

mod slabs;

use cubecl::prelude::*;

use super::{check_coefficients, check_head, check_targets};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::cube::{cube_max, cube_sum};
use crate::ops::gated::kernel::safe_tanh;
use crate::ops::gather::kernel::copy_at;
use crate::ops::linear::kernel::{self as linear, operand_rows, panels_of};
use crate::ops::matmul::kernel::{Operand, product};
use crate::ops::{Head, StatisticSet, TokenCoefficients, TokenStatistics};
use crate::tensor::{DType, Tensor};

/// Logits that exist at a time if the caller does not say: 128 MiB of them.
const CHUNK_LOGITS: usize = 1 << 25;

/// Numbers of a row: logp, lse, entropy, mean of logp, whether it is correct.
const STATISTICS: usize = 5;

#[cube(launch)]
fn soften_kernel(logits: &mut [f32], cap: f32) {
    if ABSOLUTE_POS < logits.len() {
        logits[ABSOLUTE_POS] = cap * safe_tanh(logits[ABSOLUTE_POS] / cap);
    }
}

/// Of a row of logits l: their largest, and the sums of e^(l − largest), of
/// e^(l − largest) (l − largest) and of l.
#[cube]
fn row_parts(
    logits: &[f32],
    base: usize,
    columns: usize,
    shared: &mut Shared<[f32]>,
    #[comptime] units: usize,
) -> (f32, f32, f32, f32) {
    let unit = UNIT_POS as usize;
    let mut largest = logits[base];
    let mut i = unit;
    while i < columns {
        let l = logits[base + i];
        if l > largest {
            largest = l;
        }
        i += units;
    }
    let max = cube_max(largest, shared, units);
    let mut sum = 0.0f32;
    let mut weighted = 0.0f32;
    let mut total = 0.0f32;
    let mut i = unit;
    while i < columns {
        let l = logits[base + i];
        let shifted = l - max;
        let e = shifted.exp();
        sum += e;
        // e^x x is 0 for x so small that e^x is.
        if e != 0.0f32 {
            weighted += e * shifted;
        }
        total += l;
        i += units;
    }
    let sum = cube_sum(sum, shared, units);
    let weighted = cube_sum(weighted, shared, units);
    let total = cube_sum(total, shared, units);
    (max, sum, weighted, total)
}

/// A row's statistics from the parts of all its logits and the target's.
#[cube]
fn write_statistics(statistics: &mut [f32], row: usize, parts: (f32, f32, f32, f32), target: f32, vocabulary: usize) {
    let (max, sum, weighted, total) = parts;
    let ln = sum.ln();
    let lse = max + ln;
    let at = STATISTICS * row;
    statistics[at] = target - lse;
    statistics[at + 1] = lse;
    statistics[at + 2] = ln - weighted / sum;
    statistics[at + 3] = total / f32::cast_from(vocabulary) - lse;
    statistics[at + 4] = select(target == max, 1.0f32, 0.0f32);
}

/// Rows `first..` of `statistics [M, 5]` from a chunk of logits.
#[cube(launch)]
fn statistics_kernel(
    logits: &[f32],
    targets: &[u32],
    statistics: &mut [f32],
    first: usize,
    rows: usize,
    vocabulary: usize,
    #[comptime] units: usize,
) {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let row = CUBE_POS;
    if row < rows {
        let base = row * vocabulary;
        let parts = row_parts(logits, base, vocabulary, &mut shared, units);
        if UNIT_POS == 0 {
            let target = logits[base + targets[first + row] as usize];
            write_statistics(statistics, first + row, parts, target, vocabulary);
        }
    }
}

/// Turns a chunk of logits, of `columns` entries of the vocabulary from
/// `first_column` on, into d loss / d (h Wᵀ), in place. `coefficients [M, 4]`: of
/// logp, lse, entropy and mean_logp.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn derivative_kernel(
    logits: &mut [f32],
    targets: &[u32],
    statistics: &[f32],
    coefficients: &[f32],
    first: usize,
    rows: usize,
    first_column: usize,
    columns: usize,
    vocabulary: usize,
    cap: f32,
    #[comptime] capped: bool,
) {
    if ABSOLUTE_POS < rows * columns {
        let row = first + ABSOLUTE_POS / columns;
        let column = first_column + ABSOLUTE_POS % columns;
        let a = coefficients[4 * row];
        let b = coefficients[4 * row + 1];
        let e = coefficients[4 * row + 2];
        let c = coefficients[4 * row + 3];
        let lse = statistics[STATISTICS * row + 1];
        let entropy = statistics[STATISTICS * row + 2];
        let l = logits[ABSOLUTE_POS];
        let p = (l - lse).exp();
        let mut d = p * (b - a - c - e * (l - lse + entropy)) + c / f32::cast_from(vocabulary);
        if column == targets[row] as usize {
            d += a;
        }
        if comptime!(capped) {
            let t = l / cap;
            d *= 1.0f32 - t * t;
        }
        logits[ABSOLUTE_POS] = d;
    }
}

fn chunk_rows(asked: usize, rows: usize, vocabulary: usize) -> usize {
    let most = if asked == 0 { (CHUNK_LOGITS / vocabulary.max(1)).clamp(32, 2048) } else { asked };
    most.min(rows.max(1))
}

/// Bytes of a chunk's logits with a copy of its rows and their gradient, and of
/// each row's statistics, coefficients and target.
pub(crate) fn scratch_bytes(rows: usize, vocabulary: usize, columns: usize) -> u64 {
    4 * (chunk_rows(0, rows, vocabulary) * (vocabulary + 2 * columns) + (STATISTICS + 4 + 1) * rows) as u64
}

fn soften(gpu: &Gpu, op: &'static str, logits: &mut Tensor, cap: f32) -> Result<()> {
    let (count, dim) = gpu.elementwise(logits.len());
    soften_kernel::launch(gpu.client(), count, dim, gpu.output_f32(op, logits)?, cap);
    Ok(())
}

pub(crate) fn logits(gpu: &Gpu, h: &Tensor, head: &Head) -> Result<Tensor> {
    const OP: &str = "logits";
    check_head(OP, h, head)?;
    let mut out = linear::forward(gpu, OP, h, head.weight)?;
    if let Some(cap) = head.softcap.filter(|_| !out.is_empty()) {
        soften(gpu, OP, &mut out, cap)?;
    }
    Ok(out)
}

fn logits_of(gpu: &Gpu, op: &'static str, h: &Tensor, w: &Tensor, softcap: Option<f32>) -> Result<Tensor> {
    let mut out = gpu.empty_f32(op, &[h.rows(), w.rows()])?;
    product(
        gpu,
        op,
        Operand { tensor: h, transpose: false },
        Operand { tensor: w, transpose: true },
        1.0,
        false,
        &mut out,
    )?;
    if let Some(cap) = softcap.filter(|_| !out.is_empty()) {
        soften(gpu, op, &mut out, cap)?;
    }
    Ok(out)
}

/// What the backward pass has beside the forward pass.
struct Back<'a> {
    coefficients: Tensor,
    dh: Tensor,
    dweight: Option<&'a mut Tensor>,
}

/// Rows of h from `first` on, in a tensor of their own where they are not all.
fn part_of(gpu: &Gpu, op: &'static str, h: &Tensor, first: usize, rows: usize) -> Result<Tensor> {
    if rows == h.rows() {
        return Ok(h.clone());
    }
    let c = h.columns();
    let mut part = gpu.empty_f32(op, &[rows, c])?;
    copy_at(gpu, op, (h, first * c), (&mut part, 0), rows * c)?;
    Ok(part)
}

/// The derivatives of rows `first..` and the vocabulary's entries from
/// `first_column` on, in the place of their logits.
#[allow(clippy::too_many_arguments)]
fn differentiate(
    gpu: &Gpu,
    op: &'static str,
    logits: &mut Tensor,
    (first, first_column): (usize, usize),
    targets: &Tensor,
    statistics: &Tensor,
    coefficients: &Tensor,
    head: &Head,
) -> Result<()> {
    let (rows, columns) = (logits.rows(), logits.columns());
    let (count, dim) = gpu.elementwise(logits.len());
    derivative_kernel::launch(
        gpu.client(),
        count,
        dim,
        gpu.output_f32(op, logits)?,
        gpu.input(op, targets, DType::U32)?,
        gpu.input_f32(op, statistics)?,
        gpu.input_f32(op, coefficients)?,
        first,
        rows,
        first_column,
        columns,
        head.weight.shape()[0],
        head.softcap.unwrap_or(1.0),
        head.softcap.is_some(),
    );
    Ok(())
}

/// Statistics `[M, 5]`, and where wanted the gradients.
fn run(
    gpu: &Gpu,
    op: &'static str,
    h: &Tensor,
    head: &Head,
    targets: &[u32],
    mut back: Option<&mut Back>,
) -> Result<Tensor> {
    let (m, v, c) = check_head(op, h, head)?;
    check_targets(op, targets, m, v)?;
    let mut statistics = gpu.empty_f32(op, &[m, STATISTICS])?;
    if m == 0 {
        return Ok(statistics);
    }
    let targets = gpu.indices(op, targets)?;
    let slabs = panels_of(gpu, op, head.weight)?;
    if slabs.len() > 1 {
        slabs::run(gpu, op, h, head, &targets, &slabs, &mut statistics, back)?;
        return Ok(statistics);
    }
    let w = operand_rows(gpu, op, head.weight, 0..v)?;
    let most = chunk_rows(head.chunk_rows, m, v);
    for first in (0..m).step_by(most) {
        let rows = most.min(m - first);
        let part = part_of(gpu, op, h, first, rows)?;
        let mut logits = logits_of(gpu, op, &part, &w, head.softcap)?;
        let (count, dim, units) = gpu.by_row(rows, v);
        statistics_kernel::launch(
            gpu.client(),
            count,
            dim,
            gpu.input_f32(op, &logits)?,
            gpu.input(op, &targets, DType::U32)?,
            gpu.output_f32(op, &mut statistics)?,
            first,
            rows,
            v,
            units,
        );
        let Some(back) = back.as_deref_mut() else { continue };
        differentiate(gpu, op, &mut logits, (first, 0), &targets, &statistics, &back.coefficients, head)?;
        let mut dh = gpu.empty_f32(op, &[rows, c])?;
        let plain = |tensor| Operand { tensor, transpose: false };
        product(gpu, op, plain(&logits), plain(&w), 1.0, false, &mut dh)?;
        copy_at(gpu, op, (&dh, 0), (&mut back.dh, first * c), rows * c)?;
        if let Some(dweight) = back.dweight.as_deref_mut() {
            product(gpu, op, Operand { tensor: &logits, transpose: true }, plain(&part), 1.0, true, dweight)?;
        }
    }
    Ok(statistics)
}

fn back<'a>(
    gpu: &Gpu,
    op: &'static str,
    h: &Tensor,
    head: &Head,
    coefficients: &TokenCoefficients,
    dweight: Option<&'a mut Tensor>,
) -> Result<Back<'a>> {
    let (m, v, c) = check_head(op, h, head)?;
    check_coefficients(op, coefficients, m)?;
    if let Some(dweight) = &dweight {
        dweight.expect_shape(op, &[v, c])?;
    }
    let at = |list: &[f32], row: usize| list.get(row).copied().unwrap_or(0.0);
    let TokenCoefficients { logp, lse, entropy, mean_logp } = coefficients;
    let rows: Vec<f32> =
        (0..m).flat_map(|row| [at(logp, row), at(lse, row), at(entropy, row), at(mean_logp, row)]).collect();
    Ok(Back { coefficients: gpu.upload_f32(op, &[m, 4], &rows)?, dh: gpu.empty_f32(op, &[m, c])?, dweight })
}

fn read(gpu: &Gpu, op: &'static str, statistics: &Tensor, want: StatisticSet) -> Result<TokenStatistics> {
    if statistics.is_empty() {
        return Ok(TokenStatistics::default());
    }
    let values = gpu.read_f32(op, statistics)?;
    let column = |column: usize| values.chunks_exact(STATISTICS).map(|row| row[column]).collect::<Vec<f32>>();
    let wanted = |wanted: bool, place| if wanted { column(place) } else { Vec::new() };
    Ok(TokenStatistics {
        logp: column(0),
        lse: column(1),
        entropy: wanted(want.entropy, 2),
        mean_logp: wanted(want.mean_logp, 3),
        correct: wanted(want.correct, 4).iter().map(|correct| *correct == 1.0).collect(),
    })
}

pub(crate) fn forward(
    gpu: &Gpu,
    h: &Tensor,
    head: &Head,
    targets: &[u32],
    want: StatisticSet,
) -> Result<TokenStatistics> {
    const OP: &str = "token_logp";
    let statistics = run(gpu, OP, h, head, targets, None)?;
    read(gpu, OP, &statistics, want)
}

pub(crate) fn backward(
    gpu: &Gpu,
    h: &Tensor,
    head: &Head,
    targets: &[u32],
    coefficients: &TokenCoefficients,
    dweight: Option<&mut Tensor>,
) -> Result<Tensor> {
    const OP: &str = "token_logp_backward";
    let mut back = back(gpu, OP, h, head, coefficients, dweight)?;
    run(gpu, OP, h, head, targets, Some(&mut back))?;
    Ok(back.dh)
}

pub(crate) fn fused(
    gpu: &Gpu,
    h: &Tensor,
    head: &Head,
    targets: &[u32],
    want: StatisticSet,
    coefficients: &TokenCoefficients,
    dweight: Option<&mut Tensor>,
) -> Result<(TokenStatistics, Tensor)> {
    const OP: &str = "token_logp_fused";
    let mut back = back(gpu, OP, h, head, coefficients, dweight)?;
    let statistics = run(gpu, OP, h, head, targets, Some(&mut back))?;
    Ok((read(gpu, OP, &statistics, want)?, back.dh))
}
