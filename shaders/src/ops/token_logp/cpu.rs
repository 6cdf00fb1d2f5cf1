//! A chunk of rows at a time, and of it a block of the vocabulary at a time.
//!
//! Of each block: the logits by a matrix product, and while they are still in
//! a cache, their largest and the sum of their exponentials per row. When
//! all blocks are there the rows' statistics follow from the blocks'. For the
//! gradient each block's logits are turned in place into their own derivative
//! and multiplied back at once. Blocks are the unit of parallel work; sums over
//! blocks go in a fixed order, so the bits do not depend on the threads.

use std::borrow::Cow;
use std::ops::Range;

use super::{check_coefficients, check_head, check_targets};
use crate::cpu::gemm::{Matrix, MatrixMut, Output, gemm};
use crate::cpu::{Cpu, PIECE, simd};
use crate::error::{Result, TensorError};
use crate::ops::linear::cpu::{Values, forward_into};
use crate::ops::{Head, StatisticSet, TokenCoefficients, TokenStatistics};
use crate::tensor::Tensor;

/// Logits that exist at a time if the caller does not say: 64 MiB of them.
const CHUNK_LOGITS: usize = 1 << 24;
/// Entries of the vocabulary in a block: with 256 rows a block takes 1 MiB.
const BLOCK: usize = 1024;
/// Parts of the vocabulary that sum up a gradient of h of their own.
const PARTS: usize = 8;

/// Rows of a chunk.
fn chunk_rows(asked: usize, rows: usize, vocabulary: usize) -> usize {
    let most = if asked == 0 { (CHUNK_LOGITS / vocabulary.max(1)).clamp(32, 512) } else { asked };
    most.min(rows.max(1))
}

/// Bytes of a chunk's logits and of the parts of its gradient.
pub(crate) fn scratch_bytes(rows: usize, vocabulary: usize, columns: usize) -> u64 {
    4 * (chunk_rows(0, rows, vocabulary) * (vocabulary + PARTS * columns)) as u64
}

/// l = cap · tanh(l / cap).
fn soften_row(logits: &mut [f32], cap: f32) {
    let inverse = 1.0 / cap;
    simd::dispatch(
        #[inline(always)]
        || {
            for l in logits.iter_mut() {
                *l = cap * simd::tanh(*l * inverse);
            }
        },
    );
}

pub(crate) fn logits(cpu: &Cpu, h: &Tensor, head: &Head) -> Result<Tensor> {
    const OP: &str = "logits";
    let (m, v, _) = check_head(OP, h, head)?;
    let mut out = cpu.empty_f32(OP, &[m, v])?;
    let values = cpu.f32_mut(OP, &mut out)?;
    forward_into(cpu, OP, cpu.f32(OP, h)?, m, head.weight, values)?;
    if let Some(cap) = head.softcap {
        cpu.workers.each(values.chunks_mut(PIECE), |logits| soften_row(logits, cap));
    }
    Ok(out)
}

/// The statistics of one row.
#[derive(Clone, Copy, Default)]
struct Row {
    logp: f32,
    lse: f32,
    entropy: f32,
    mean_logp: f32,
    correct: bool,
}

/// What is computed beside logp and lse.
#[derive(Clone, Copy)]
struct Want {
    entropy: bool,
    mean: bool,
}

/// What a block of the vocabulary adds to a row's statistics.
#[derive(Clone, Copy, Default)]
struct Partial {
    max: f32,
    /// Σ e^(l − max).
    sum: f32,
    /// Σ e^(l − max) (l − max).
    weighted: f32,
    /// Σ l.
    total: f32,
    /// The target's logit, if it lies in this block.
    target: f32,
}

impl Partial {
    fn new(logits: &[f32], target: Option<usize>, want: Want) -> Partial {
        simd::dispatch(
            #[inline(always)]
            || {
                let max = simd::max(logits);
                let (sum, weighted) = if want.entropy { exp_sums(logits, max) } else { (exp_sum(logits, max), 0.0) };
                let total = if want.mean { simd::sum(logits) } else { 0.0 };
                Partial { max, sum, weighted, total, target: target.map_or(0.0, |target| logits[target]) }
            },
        )
    }
}

impl Row {
    /// From the blocks' parts, in their order.
    fn new(parts: impl Iterator<Item = Partial> + Clone, vocabulary: usize, want: Want) -> Row {
        let max = parts.clone().fold(f32::NEG_INFINITY, |max, part| if part.max > max { part.max } else { max });
        let (mut sum, mut weighted, mut total, mut target) = (0.0f32, 0.0f32, 0.0f32, 0.0f32);
        for part in parts {
            let shift = part.max - max;
            let factor = simd::exp(shift);
            sum += factor * part.sum;
            if want.entropy && factor > 0.0 {
                weighted += factor * shift.mul_add(part.sum, part.weighted);
            }
            total += part.total;
            target += part.target;
        }
        let ln = sum.ln();
        let lse = max + ln;
        Row {
            logp: target - lse,
            lse,
            // H = lse − Σ p l = ln Σ e^(l − max) − Σ p (l − max)
            entropy: if want.entropy { ln - weighted / sum } else { 0.0 },
            mean_logp: if want.mean { total / vocabulary as f32 - lse } else { 0.0 },
            correct: target == max,
        }
    }
}

/// Σ e^(l − max).
#[inline(always)]
fn exp_sum(logits: &[f32], max: f32) -> f32 {
    const LANES: usize = simd::LANES;
    let mut lanes = [0.0f32; LANES];
    let mut chunks = logits.chunks_exact(LANES);
    for l in chunks.by_ref() {
        for i in 0..LANES {
            lanes[i] += simd::exp(l[i] - max);
        }
    }
    for (lane, l) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += simd::exp(*l - max);
    }
    simd::sum(&lanes)
}

/// Σ e^(l − max) and Σ e^(l − max) (l − max).
#[inline(always)]
fn exp_sums(logits: &[f32], max: f32) -> (f32, f32) {
    const LANES: usize = simd::LANES;
    let (mut sums, mut weighted) = ([0.0f32; LANES], [0.0f32; LANES]);
    let mut chunks = logits.chunks_exact(LANES);
    for l in chunks.by_ref() {
        for i in 0..LANES {
            let x = l[i] - max;
            let e = simd::exp(x);
            sums[i] += e;
            weighted[i] = weigh(e, x, weighted[i]);
        }
    }
    for (i, l) in chunks.remainder().iter().enumerate() {
        let x = l - max;
        let e = simd::exp(x);
        sums[i] += e;
        weighted[i] = weigh(e, x, weighted[i]);
    }
    (simd::sum(&sums), simd::sum(&weighted))
}

/// sum + e · x, where 0 · −∞ counts as 0: a token of no probability has no
/// part in the entropy.
#[inline(always)]
fn weigh(e: f32, x: f32, sum: f32) -> f32 {
    if e == 0.0 { sum } else { e.mul_add(x, sum) }
}

/// The coefficients of one row.
#[derive(Clone, Copy, Default)]
struct Coefficients {
    logp: f32,
    lse: f32,
    entropy: f32,
    mean_logp: f32,
}

impl Coefficients {
    fn of(all: &TokenCoefficients, row: usize) -> Coefficients {
        let at = |list: &[f32]| list.get(row).copied().unwrap_or(0.0);
        Coefficients {
            logp: at(&all.logp),
            lse: at(&all.lse),
            entropy: at(&all.entropy),
            mean_logp: at(&all.mean_logp),
        }
    }
}

/// Turns a block of a row of logits into d loss / d logit, through the cap.
fn row_gradient(
    logits: &mut [f32],
    target: Option<usize>,
    row: Row,
    d: Coefficients,
    vocabulary: usize,
    softcap: Option<f32>,
) {
    simd::dispatch(
        #[inline(always)]
        || {
            let share = d.mean_logp / vocabulary as f32;
            let factor = d.lse - d.logp - d.mean_logp;
            let inverse = softcap.map_or(0.0, |cap| 1.0 / cap);
            let at_target = target.map_or(0.0, |target| logits[target] * inverse);
            if softcap.is_none() && d.entropy == 0.0 {
                for l in logits.iter_mut() {
                    *l = simd::exp(*l - row.lse).mul_add(factor, share);
                }
            } else {
                for l in logits.iter_mut() {
                    let log_p = *l - row.lse;
                    let p = simd::exp(log_p);
                    let surprise = if p == 0.0 { 0.0 } else { log_p + row.entropy };
                    let t = *l * inverse;
                    let dl = p.mul_add(factor - d.entropy * surprise, share);
                    *l = dl * (1.0 - t * t);
                }
            }
            if let Some(target) = target {
                logits[target] += d.logp * (1.0 - at_target * at_target);
            }
        },
    );
}

/// One walk over the chunks: logits, statistics, and where `coefficients` says
/// so the gradients.
struct Walk<'a> {
    cpu: &'a Cpu,
    op: &'static str,
    head: &'a Head<'a>,
    targets: &'a [u32],
    want: Want,
}

/// A chunk of rows of h.
struct Chunk<'a> {
    h: Matrix<'a>,
    count: usize,
    targets: &'a [u32],
    values: &'a Values<'a>,
    vocabulary: usize,
    width: usize,
}

impl Chunk<'_> {
    /// The head's rows of a block, unpacked where they must be.
    fn weight(&self, block: &Range<usize>) -> Cow<'_, [f32]> {
        let range = block.start * self.width..block.end * self.width;
        match self.values {
            Values::F32(values) => Cow::Borrowed(&values[range]),
            packed => {
                let mut unpacked = vec![0.0; range.len()];
                packed.unpack(range, &mut unpacked);
                Cow::Owned(unpacked)
            }
        }
    }

    /// The place of a row's target in a block.
    fn target(&self, row: usize, block: &Range<usize>) -> Option<usize> {
        let target = self.targets[row] as usize;
        block.contains(&target).then(|| target - block.start)
    }

    /// The soft-capped logits of a block `[count, block]`, and its part in each
    /// row's statistics.
    fn forward(
        &self,
        block: &Range<usize>,
        want: Want,
        softcap: Option<f32>,
        logits: &mut [f32],
        parts: &mut [Partial],
    ) {
        let weight = self.weight(block);
        let w = Matrix::new(&weight, block.len(), self.width).t();
        gemm(1.0, self.h, w, Output::Overwrite, &mut MatrixMut::new(logits, self.count, block.len()));
        for (row, (logits, part)) in logits.chunks_exact_mut(block.len()).zip(parts).enumerate() {
            if let Some(cap) = softcap {
                soften_row(logits, cap);
            }
            *part = Partial::new(logits, self.target(row, block), want);
        }
    }
}

impl Walk<'_> {
    fn run(
        &self,
        h: &Tensor,
        coefficients: Option<&TokenCoefficients>,
        mut dweight: Option<&mut Tensor>,
    ) -> Result<(Vec<Row>, Option<Tensor>)> {
        let Walk { cpu, op, head, targets, want } = *self;
        let (m, v, c) = check_head(op, h, head)?;
        check_targets(op, targets, m, v)?;
        if let Some(coefficients) = coefficients {
            check_coefficients(op, coefficients, m)?;
        }
        if let Some(dweight) = &dweight {
            dweight.expect_shape(op, &[v, c])?;
        }
        let h = cpu.f32(op, h)?;
        let values = Values::new(cpu, op, head.weight)?;
        let mut rows = Vec::new();
        rows.try_reserve_exact(m).map_err(|_| TensorError::Memory { op, bytes: m, device: "cpu".into() })?;
        let mut dh = match coefficients {
            Some(_) => Some(cpu.empty_f32(op, &[m, c])?),
            None => None,
        };
        let most = chunk_rows(head.chunk_rows, m, v);
        let mut logits = cpu.empty_f32(op, &[most, if coefficients.is_some() { v } else { 0 }])?;
        let mut sums = cpu.empty_f32(op, &[if coefficients.is_some() { PARTS } else { 0 }, most, c])?;
        let mut parts = vec![Partial::default(); most * v.div_ceil(BLOCK)];
        for from in (0..m).step_by(most) {
            let count = most.min(m - from);
            let chunk = Chunk {
                h: Matrix::new(&h[from * c..], count, c),
                count,
                targets: &targets[from..from + count],
                values: &values,
                vocabulary: v,
                width: c,
            };
            let parts = &mut parts[..count * v.div_ceil(BLOCK)];
            if coefficients.is_some() {
                let logits = &mut cpu.f32_mut(op, &mut logits)?[..count * v];
                self.logits_kept(&chunk, logits, parts);
            } else {
                self.logits_dropped(&chunk, parts);
            }
            for row in 0..count {
                rows.push(Row::new(parts.iter().skip(row).step_by(count).copied(), v, want));
            }
            if let (Some(coefficients), Some(dh)) = (coefficients, &mut dh) {
                let d: Vec<_> = (from..from + count).map(|row| Coefficients::of(coefficients, row)).collect();
                let logits = &mut cpu.f32_mut(op, &mut logits)?[..count * v];
                let sums = &mut cpu.f32_mut(op, &mut sums)?[..PARTS * count * c];
                let dweight = match &mut dweight {
                    Some(dweight) => Some(cpu.f32_mut(op, dweight)?),
                    None => None,
                };
                let used = self.gradient(&chunk, &rows[from..], &d, logits, sums, dweight);
                let dh = &mut cpu.f32_mut(op, dh)?[from * c..(from + count) * c];
                self.add_up(dh, &sums[..used * count * c]);
            }
        }
        Ok((rows, dh))
    }

    /// The logits of all blocks, one block after another.
    fn logits_kept(&self, chunk: &Chunk, logits: &mut [f32], parts: &mut [Partial]) {
        let blocks = logits.chunks_mut(chunk.count * BLOCK).zip(parts.chunks_mut(chunk.count)).enumerate();
        self.cpu.workers.each(blocks, |(index, (logits, parts))| {
            let block = block_range(index, chunk.vocabulary);
            chunk.forward(&block, self.want, self.head.softcap, logits, parts);
        });
    }

    /// Where only the statistics are wanted, a block's logits go as they came.
    fn logits_dropped(&self, chunk: &Chunk, parts: &mut [Partial]) {
        self.cpu.workers.each(parts.chunks_mut(chunk.count).enumerate(), |(index, parts)| {
            let block = block_range(index, chunk.vocabulary);
            let mut logits = vec![0.0; chunk.count * block.len()];
            chunk.forward(&block, self.want, self.head.softcap, &mut logits, parts);
        });
    }

    /// Gradients by h in parts of the vocabulary, each a sum of its own in
    /// `sums`; gives how many there are.
    fn gradient(
        &self,
        chunk: &Chunk,
        rows: &[Row],
        d: &[Coefficients],
        logits: &mut [f32],
        sums: &mut [f32],
        dweight: Option<&mut [f32]>,
    ) -> usize {
        let (count, v, c) = (chunk.count, chunk.vocabulary, chunk.width);
        let blocks = v.div_ceil(BLOCK).div_ceil(PARTS);
        let span = blocks * BLOCK;
        let parts = v.div_ceil(span);
        let mut dweights: Vec<&mut [f32]> = match dweight {
            Some(dweight) => dweight.chunks_mut(span * c).collect(),
            None => Vec::new(),
        };
        dweights.resize_with(parts, || &mut []);
        let work = logits.chunks_mut(count * span).zip(sums.chunks_mut(count * c)).zip(dweights).enumerate();
        self.cpu.workers.each(work, |(part, ((logits, sum), dweight))| {
            for (index, logits) in logits.chunks_mut(count * BLOCK).enumerate() {
                let block = block_range(part * blocks + index, v);
                for (row, logits) in logits.chunks_exact_mut(block.len()).enumerate() {
                    let target = chunk.target(row, &block);
                    row_gradient(logits, target, rows[row], d[row], v, self.head.softcap);
                }
                let dlogits = Matrix::new(logits, count, block.len());
                let weight = chunk.weight(&block);
                let output = if index == 0 { Output::Overwrite } else { Output::Add };
                let w = Matrix::new(&weight, block.len(), c);
                gemm(1.0, dlogits, w, output, &mut MatrixMut::new(sum, count, c));
                if !dweight.is_empty() {
                    let dweight = &mut dweight[index * BLOCK * c..][..block.len() * c];
                    let dweight = &mut MatrixMut::new(dweight, block.len(), c);
                    gemm(1.0, dlogits.t(), chunk.h, Output::Add, dweight);
                }
            }
        });
        parts
    }

    /// dh = the sum of the parts, in their order.
    fn add_up(&self, dh: &mut [f32], sums: &[f32]) {
        let size = dh.len();
        self.cpu.workers.each(dh.chunks_mut(PIECE).enumerate(), |(index, dh)| {
            let from = index * PIECE;
            for (part, sums) in sums.chunks_exact(size).enumerate() {
                let sums = &sums[from..from + dh.len()];
                if part == 0 {
                    dh.copy_from_slice(sums);
                } else {
                    simd::dispatch(
                        #[inline(always)]
                        || simd::add_scaled(dh, sums, 1.0),
                    );
                }
            }
        });
    }
}

fn block_range(index: usize, vocabulary: usize) -> Range<usize> {
    index * BLOCK..((index + 1) * BLOCK).min(vocabulary)
}

fn statistics(rows: &[Row], want: StatisticSet) -> TokenStatistics {
    let list = |wanted: bool, of: fn(&Row) -> f32| if wanted { rows.iter().map(of).collect() } else { Vec::new() };
    TokenStatistics {
        logp: list(true, |row| row.logp),
        lse: list(true, |row| row.lse),
        entropy: list(want.entropy, |row| row.entropy),
        mean_logp: list(want.mean_logp, |row| row.mean_logp),
        correct: if want.correct { rows.iter().map(|row| row.correct).collect() } else { Vec::new() },
    }
}

pub(crate) fn forward(
    cpu: &Cpu,
    h: &Tensor,
    head: &Head,
    targets: &[u32],
    want: StatisticSet,
) -> Result<TokenStatistics> {
    let wanted = Want { entropy: want.entropy, mean: want.mean_logp };
    let walk = Walk { cpu, op: "token_logp", head, targets, want: wanted };
    Ok(statistics(&walk.run(h, None, None)?.0, want))
}

pub(crate) fn backward(
    cpu: &Cpu,
    h: &Tensor,
    head: &Head,
    targets: &[u32],
    coefficients: &TokenCoefficients,
    dweight: Option<&mut Tensor>,
) -> Result<Tensor> {
    let want = StatisticSet::default();
    Ok(walk_back(cpu, "token_logp_backward", h, head, targets, want, coefficients, dweight)?.1)
}

pub(crate) fn fused(
    cpu: &Cpu,
    h: &Tensor,
    head: &Head,
    targets: &[u32],
    want: StatisticSet,
    coefficients: &TokenCoefficients,
    dweight: Option<&mut Tensor>,
) -> Result<(TokenStatistics, Tensor)> {
    walk_back(cpu, "token_logp_fused", h, head, targets, want, coefficients, dweight)
}

#[allow(clippy::too_many_arguments)]
fn walk_back(
    cpu: &Cpu,
    op: &'static str,
    h: &Tensor,
    head: &Head,
    targets: &[u32],
    want: StatisticSet,
    coefficients: &TokenCoefficients,
    dweight: Option<&mut Tensor>,
) -> Result<(TokenStatistics, Tensor)> {
    let entropy = want.entropy || coefficients.entropy.iter().any(|e| *e != 0.0);
    let wanted = Want { entropy, mean: want.mean_logp };
    let (rows, dh) = Walk { cpu, op, head, targets, want: wanted }.run(h, Some(coefficients), dweight)?;
    let dh = dh.ok_or(TensorError::Failed { op, reason: "no gradient was made".into() })?;
    Ok((statistics(&rows, want), dh))
}
