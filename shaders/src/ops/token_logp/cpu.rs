//! A chunk of rows of logits at a time: a matrix product, statistics over its
//! rows, and for the gradient the logits turned in place into their own
//! derivative and multiplied back.

use super::{check_coefficients, check_head, check_targets};
use crate::cpu::gemm::{Matrix, MatrixMut, Output, gemm_parallel};
use crate::cpu::{Cpu, PIECE, simd};
use crate::error::{Result, TensorError};
use crate::ops::linear::cpu::{backward_into, forward_into};
use crate::ops::{Head, StatisticSet, TokenCoefficients, TokenStatistics};
use crate::tensor::Tensor;

/// Rows of logits at a time where the caller does not say.
const CHUNK_ROWS: usize = 128;

fn soften(cpu: &Cpu, logits: &mut [f32], softcap: Option<f32>) {
    let Some(cap) = softcap else { return };
    let inverse = 1.0 / cap;
    cpu.workers.each(logits.chunks_mut(PIECE), |logits| {
        simd::dispatch(|| {
            for l in logits {
                *l = cap * simd::tanh(*l * inverse);
            }
        });
    });
}

pub(crate) fn logits(cpu: &Cpu, h: &Tensor, head: &Head) -> Result<Tensor> {
    const OP: &str = "logits";
    let (m, v, _) = check_head(OP, h, head)?;
    let mut out = cpu.empty_f32(OP, &[m, v])?;
    let values = cpu.f32_mut(OP, &mut out)?;
    forward_into(cpu, OP, cpu.f32(OP, h)?, m, head.weight, values)?;
    soften(cpu, values, head.softcap);
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
    correct: bool,
}

fn row_statistics(logits: &[f32], target: usize, want: Want) -> Row {
    simd::dispatch(|| {
        let max = simd::max(logits);
        let (sum, weighted) = if want.entropy { exp_sums(logits, max) } else { (exp_sum(logits, max), 0.0) };
        let ln = sum.ln();
        let lse = max + ln;
        Row {
            logp: logits[target] - lse,
            lse,
            // H = lse − Σ p l = ln Σ e^(l − max) − Σ p (l − max)
            entropy: if want.entropy { ln - weighted / sum } else { 0.0 },
            mean_logp: if want.mean { simd::sum(logits) / logits.len() as f32 - lse } else { 0.0 },
            correct: want.correct && logits.iter().position(|l| *l == max) == Some(target),
        }
    })
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

/// Turns a row of logits into d loss / d logit, through the cap.
fn row_gradient(logits: &mut [f32], target: usize, row: Row, d: Coefficients, softcap: Option<f32>) {
    simd::dispatch(|| {
        let share = d.mean_logp / logits.len() as f32;
        let factor = d.lse - d.logp - d.mean_logp;
        let at_target = logits[target];
        let slope = |l: f32| softcap.map_or(1.0, |cap| 1.0 - (l / cap) * (l / cap));
        if let (None, 0.0) = (softcap, d.entropy) {
            for l in logits.iter_mut() {
                *l = simd::exp(*l - row.lse).mul_add(factor, share);
            }
        } else {
            let inverse = softcap.map_or(0.0, |cap| 1.0 / cap);
            for l in logits.iter_mut() {
                let log_p = *l - row.lse;
                let p = simd::exp(log_p);
                let surprise = if p == 0.0 { 0.0 } else { log_p + row.entropy };
                let t = *l * inverse;
                let dl = p.mul_add(factor - d.entropy * surprise, share);
                *l = dl * (1.0 - t * t);
            }
        }
        logits[target] += d.logp * slope(at_target);
    });
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
        let mut rows = Vec::new();
        rows.try_reserve_exact(m).map_err(|_| TensorError::Memory { op, bytes: m, device: "cpu".into() })?;
        rows.resize(m, Row::default());
        let mut dh = match coefficients {
            Some(_) => Some(cpu.empty_f32(op, &[m, c])?),
            None => None,
        };
        let chunk = if head.chunk_rows == 0 { CHUNK_ROWS } else { head.chunk_rows }.min(m.max(1));
        let mut logits = cpu.empty_f32(op, &[chunk, v])?;
        for from in (0..m).step_by(chunk) {
            let count = chunk.min(m - from);
            let h = &h[from * c..(from + count) * c];
            let logits = &mut cpu.f32_mut(op, &mut logits)?[..count * v];
            forward_into(cpu, op, h, count, head.weight, logits)?;
            soften(cpu, logits, head.softcap);
            let lines = logits.chunks_exact_mut(v).zip(&mut rows[from..from + count]).enumerate();
            cpu.workers.each(lines, |(index, (logits, row))| {
                let target = targets[from + index] as usize;
                *row = row_statistics(logits, target, want);
                if let Some(coefficients) = coefficients {
                    let d = Coefficients::of(coefficients, from + index);
                    row_gradient(logits, target, *row, d, head.softcap);
                }
            });
            if let Some(dh) = &mut dh {
                let dh = &mut cpu.f32_mut(op, dh)?[from * c..(from + count) * c];
                backward_into(cpu, op, logits, count, head.weight, Output::Overwrite, dh)?;
            }
            if let Some(dweight) = dweight.as_deref_mut() {
                let dlogits = Matrix::new(logits, count, v).t();
                let dweight = MatrixMut::new(cpu.f32_mut(op, dweight)?, v, c);
                gemm_parallel(&cpu.workers, 1.0, dlogits, Matrix::new(h, count, c), Output::Add, dweight);
            }
        }
        Ok((rows, dh))
    }
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
    let wanted = Want { entropy: want.entropy, mean: want.mean_logp, correct: want.correct };
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
    let wanted = Want { entropy, mean: want.mean_logp, correct: want.correct };
    let (rows, dh) = Walk { cpu, op, head, targets, want: wanted }.run(h, Some(coefficients), dweight)?;
    let dh = dh.ok_or(TensorError::Failed { op, reason: "no gradient was made".into() })?;
    Ok((statistics(&rows, want), dh))
}
