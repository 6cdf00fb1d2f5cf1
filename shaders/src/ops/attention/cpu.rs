//! Blocks of queries against blocks of keys as small matrix products, a task
//! per document and head (backward: per key head, if there are
//! enough). Blocks that no query sees are skipped; the
//! scores of a block live in a cache and nowhere else.

use super::{check, check_cached};
use crate::cpu::gemm::{Matrix, MatrixMut, Output, gemm};
use crate::cpu::{Cpu, piece_rows, simd};
use crate::error::Result;
use crate::ops::{AttentionSpec, Segments};
use crate::tensor::Tensor;

/// Queries of a block: short enough that little is computed above the
/// diagonal.
const QUERIES: usize = 64;
/// Keys of a block: the scores of one take 64 KiB.
const KEYS: usize = 256;
/// Rows of scores begin at multiples of a register.
const ALIGN: usize = 16;

/// One head of one document (or cache), as views.
struct Heads<'a> {
    q: Matrix<'a>,
    k: Matrix<'a>,
    v: Matrix<'a>,
}

/// Which keys a query sees: query row i stands at position `offset + i`.
#[derive(Clone, Copy)]
struct Mask {
    offset: usize,
    window: usize,
}

impl Mask {
    fn new(offset: usize, spec: &AttentionSpec) -> Mask {
        Mask { offset, window: spec.window.unwrap_or(usize::MAX) }
    }

    /// First and one past the last key that query row i sees.
    fn keys(&self, i: usize) -> (usize, usize) {
        let end = self.offset + i + 1;
        (end.saturating_sub(self.window), end)
    }

    /// The same within the block of keys `from..to`, relative to it.
    fn within(&self, i: usize, from: usize, to: usize) -> (usize, usize) {
        let (first, end) = self.keys(i);
        let (first, end) = (first.clamp(from, to) - from, end.clamp(from, to) - from);
        (first, end.max(first))
    }
}

/// Blocks of `size` from `from` to `to`.
fn blocks(from: usize, to: usize, size: usize) -> impl Iterator<Item = (usize, usize)> {
    (from..to).step_by(size).map(move |start| (start, (start + size).min(to)))
}

/// s = cap · tanh(s / cap).
#[inline(always)]
fn soften(scores: &mut [f32], cap: f32) {
    let inverse = 1.0 / cap;
    for s in scores {
        *s = cap * simd::tanh(*s * inverse);
    }
}

/// The forward pass of one head with a running maximum and sum per query
/// (Milakov and Gimelshein, 2018).
fn forward_head(heads: &Heads, mask: Mask, spec: &AttentionSpec, out: &mut MatrixMut, mut lse: Option<&mut MatrixMut>) {
    let dim = spec.head_dim;
    let mut scores = vec![0.0f32; QUERIES * KEYS];
    for (q_from, q_to) in blocks(0, heads.q.rows(), QUERIES) {
        let count = q_to - q_from;
        let q = heads.q.row_range(q_from, count);
        let mut out = out.part(q_from, count, 0, dim);
        let mut largest = [f32::NEG_INFINITY; QUERIES];
        let mut sums = [0.0f32; QUERIES];
        let (first, end) = (mask.keys(q_from).0, mask.keys(q_to - 1).1);
        for (k_from, k_to) in blocks(first, end, KEYS) {
            let keys = k_to - k_from;
            let k = heads.k.row_range(k_from, keys);
            let v = heads.v.row_range(k_from, keys);
            let stride = keys.next_multiple_of(ALIGN);
            let products = &mut MatrixMut::strided(&mut scores, count, keys, stride);
            gemm(spec.scale, q, k.t(), Output::Overwrite, products);
            simd::dispatch(
                #[inline(always)]
                || {
                    for (i, row) in scores.chunks_exact_mut(stride).take(count).enumerate() {
                        let (a, b) = mask.within(q_from + i, k_from, k_to);
                        if a == b {
                            row.fill(0.0);
                            continue;
                        }
                        // Whole registers: what the mask hides in the last one and
                        // before the window comes out as e^−∞ = 0.
                        let (row, hidden) = row.split_at_mut(b.next_multiple_of(ALIGN));
                        hidden.fill(0.0);
                        if let Some(cap) = spec.softcap {
                            soften(row, cap);
                        }
                        row[..a].fill(f32::NEG_INFINITY);
                        row[b..].fill(f32::NEG_INFINITY);
                        let largest_here = simd::max(row);
                        let new = if largest_here > largest[i] { largest_here } else { largest[i] };
                        let sum = simd::exp_in_place(row, new);
                        let rescale = simd::exp(largest[i] - new);
                        sums[i] = sums[i].mul_add(rescale, sum);
                        largest[i] = new;
                        if k_from > first {
                            for o in out.row_mut(i) {
                                *o *= rescale;
                            }
                        }
                    }
                },
            );
            let output = if k_from > first { Output::Add } else { Output::Overwrite };
            gemm(1.0, Matrix::strided(&scores, count, keys, stride), v, output, &mut out);
        }
        simd::dispatch(
            #[inline(always)]
            || {
                for (i, sum) in sums.iter().enumerate().take(count) {
                    let inverse = 1.0 / sum;
                    for o in out.row_mut(i) {
                        *o *= inverse;
                    }
                }
            },
        );
        if let Some(lse) = lse.as_deref_mut() {
            for i in 0..count {
                lse.row_mut(q_from + i)[0] = largest[i] + sums[i].ln();
            }
        }
    }
}

/// Longest documents first, so that the threads end together.
fn longest_first<T>(tasks: &mut [(usize, T)]) {
    tasks.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
}

pub(crate) fn forward(
    cpu: &Cpu,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    segments: &Segments,
    spec: &AttentionSpec,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "attention";
    check(OP, q, k, v, segments, spec)?;
    let (n, heads, dim) = (segments.tokens(), spec.heads, spec.head_dim);
    let mut out = cpu.empty_f32(OP, q.shape())?;
    let mut lse = cpu.empty_f32(OP, &[n, heads])?;
    let (q, k, v) = (views(cpu, OP, q)?, views(cpu, OP, k)?, views(cpu, OP, v)?);
    let outs = MatrixMut::new(cpu.f32_mut(OP, &mut out)?, n, heads * dim).grid(segments.bounds(), dim);
    let lses = MatrixMut::new(cpu.f32_mut(OP, &mut lse)?, n, heads).grid(segments.bounds(), 1);
    let places = segments.ranges().flat_map(|range| (0..heads).map(move |head| (range.clone(), head)));
    let mut tasks: Vec<_> =
        places.zip(outs.into_iter().zip(lses)).map(|((range, head), io)| (range.len(), (range, head, io))).collect();
    longest_first(&mut tasks);
    let group = heads / spec.kv_heads;
    cpu.workers.each(tasks.into_iter(), |(length, (range, head, (mut out, mut lse)))| {
        let kv_column = head / group * dim;
        let views = Heads {
            q: q.part(range.start, length, head * dim, dim),
            k: k.part(range.start, length, kv_column, dim),
            v: v.part(range.start, length, kv_column, dim),
        };
        forward_head(&views, Mask::new(0, spec), spec, &mut out, Some(&mut lse));
    });
    Ok((out, lse))
}

fn views<'a>(cpu: &Cpu, op: &'static str, x: &'a Tensor) -> Result<Matrix<'a>> {
    Ok(Matrix::new(cpu.f32(op, x)?, x.rows(), x.columns()))
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(
    cpu: &Cpu,
    dout: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    segments: &Segments,
    spec: &AttentionSpec,
) -> Result<(Tensor, Tensor, Tensor)> {
    const OP: &str = "attention_backward";
    check(OP, q, k, v, segments, spec)?;
    dout.expect_shape(OP, q.shape())?;
    out.expect_shape(OP, q.shape())?;
    let (n, dim, kv_heads) = (segments.tokens(), spec.head_dim, spec.kv_heads);
    let group = spec.heads / kv_heads;
    lse.expect_shape(OP, &[n, spec.heads])?;
    // A task is a document's key head with all its query heads; if there are
    // few of those, each query head sums its share apart, so that the threads
    // end together. The shape alone decides, not the threads.
    let apart = group > 1 && segments.count() * kv_heads < FEW_TASKS;
    let each = if apart { 1 } else { group };
    let sums = spec.heads / each;
    let mut dq = cpu.empty_f32(OP, q.shape())?;
    let mut dk = cpu.zeros_f32(OP, &[n, sums * dim])?;
    let mut dv = cpu.zeros_f32(OP, &[n, sums * dim])?;
    let (q, k, v) = (views(cpu, OP, q)?, views(cpu, OP, k)?, views(cpu, OP, v)?);
    let (dout, out, lse) = (views(cpu, OP, dout)?, views(cpu, OP, out)?, views(cpu, OP, lse)?);
    let bounds = segments.bounds();
    let dqs = MatrixMut::new(cpu.f32_mut(OP, &mut dq)?, n, spec.heads * dim).grid(bounds, each * dim);
    let dks = MatrixMut::new(cpu.f32_mut(OP, &mut dk)?, n, sums * dim).grid(bounds, dim);
    let dvs = MatrixMut::new(cpu.f32_mut(OP, &mut dv)?, n, sums * dim).grid(bounds, dim);
    let places = segments.ranges().flat_map(|range| (0..sums).map(move |sum| (range.clone(), sum)));
    let mut tasks: Vec<_> = places
        .zip(dqs.into_iter().zip(dks).zip(dvs))
        .map(|((range, sum), gradients)| (range.len(), (range, sum, gradients)))
        .collect();
    longest_first(&mut tasks);
    cpu.workers.each(tasks.into_iter(), |(length, (range, sum, ((mut dq, mut dk), mut dv)))| {
        let start = range.start;
        for i in 0..each {
            let head = sum * each + i;
            let kv_column = head / group * dim;
            let views = Heads {
                q: q.part(start, length, head * dim, dim),
                k: k.part(start, length, kv_column, dim),
                v: v.part(start, length, kv_column, dim),
            };
            let outer = Outer {
                dout: dout.part(start, length, head * dim, dim),
                out: out.part(start, length, head * dim, dim),
                lse: lse.part(start, length, head, 1),
            };
            let mut dq = dq.part(0, length, i * dim, dim);
            backward_head(&views, &outer, spec, &mut dq, &mut dk, &mut dv);
        }
    });
    if apart {
        dk = add_groups(cpu, OP, &dk, group, dim)?;
        dv = add_groups(cpu, OP, &dv, group, dim)?;
    }
    Ok((dq, dk, dv))
}

/// Fewer tasks than this leave threads idle at the end.
const FEW_TASKS: usize = 8;

/// The sum over each group of heads, in their order: `[N, H·D]` to `[N, G·D]`.
fn add_groups(cpu: &Cpu, op: &'static str, x: &Tensor, group: usize, dim: usize) -> Result<Tensor> {
    let (rows, columns) = (x.rows(), x.columns() / group);
    let mut y = cpu.empty_f32(op, &[rows, columns])?;
    let x = cpu.f32(op, x)?;
    let block = piece_rows(columns);
    let pieces = cpu.f32_mut(op, &mut y)?.chunks_mut(block * columns).zip(x.chunks(block * columns * group));
    cpu.workers.each(pieces, |(y, x)| {
        simd::dispatch(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_exact_mut(dim).zip(x.chunks_exact(group * dim)) {
                    y.copy_from_slice(&x[..dim]);
                    for x in x[dim..].chunks_exact(dim) {
                        simd::add_scaled(y, x, 1.0);
                    }
                }
            },
        );
    });
    Ok(y)
}

/// Scores become probabilities p, and do·v becomes d loss / d score.
#[inline(always)]
fn score_gradient(p: &mut [f32], ds: &mut [f32], lse: f32, delta: f32, softcap: Option<f32>) {
    let (ps, _) = p.as_chunks_mut::<ALIGN>();
    let (dss, _) = ds.as_chunks_mut::<ALIGN>();
    if let Some(cap) = softcap {
        let inverse = 1.0 / cap;
        for (p, ds) in ps.iter_mut().zip(dss) {
            for i in 0..ALIGN {
                let t = simd::tanh(p[i] * inverse);
                p[i] = simd::exp(cap * t - lse);
                ds[i] = p[i] * (ds[i] - delta) * (1.0 - t * t);
            }
        }
    } else {
        for (p, ds) in ps.iter_mut().zip(dss) {
            for i in 0..ALIGN {
                p[i] = simd::exp(p[i] - lse);
                ds[i] = p[i] * (ds[i] - delta);
            }
        }
    }
}

/// What the backward pass of one head knows of the forward pass's results.
struct Outer<'a> {
    dout: Matrix<'a>,
    out: Matrix<'a>,
    lse: Matrix<'a>,
}

/// dq is written, dk and dv are added to.
fn backward_head(
    heads: &Heads,
    outer: &Outer,
    spec: &AttentionSpec,
    dq: &mut MatrixMut,
    dk: &mut MatrixMut,
    dv: &mut MatrixMut,
) {
    let dim = spec.head_dim;
    let mask = Mask::new(0, spec);
    let mut probabilities = vec![0.0f32; QUERIES * KEYS];
    let mut dscores = vec![0.0f32; QUERIES * KEYS];
    for (q_from, q_to) in blocks(0, heads.q.rows(), QUERIES) {
        let count = q_to - q_from;
        let q = heads.q.row_range(q_from, count);
        let dout = outer.dout.row_range(q_from, count);
        let mut deltas = [0.0f32; QUERIES];
        simd::dispatch(
            #[inline(always)]
            || {
                for (i, delta) in deltas.iter_mut().enumerate().take(count) {
                    *delta = simd::dot(dout.row(i), outer.out.row(q_from + i));
                }
            },
        );
        let (first, end) = (mask.keys(q_from).0, mask.keys(q_to - 1).1);
        for (k_from, k_to) in blocks(first, end, KEYS) {
            let keys = k_to - k_from;
            let k = heads.k.row_range(k_from, keys);
            let v = heads.v.row_range(k_from, keys);
            let stride = keys.next_multiple_of(ALIGN);
            let (p, ds) = (&mut probabilities[..count * stride], &mut dscores[..count * stride]);
            gemm(spec.scale, q, k.t(), Output::Overwrite, &mut MatrixMut::strided(p, count, keys, stride));
            gemm(1.0, dout, v.t(), Output::Overwrite, &mut MatrixMut::strided(ds, count, keys, stride));
            simd::dispatch(
                #[inline(always)]
                || {
                    for (i, (p, ds)) in p.chunks_exact_mut(stride).zip(ds.chunks_exact_mut(stride)).enumerate() {
                        let (a, b) = mask.within(q_from + i, k_from, k_to);
                        // Whole registers, whatever stands in the last one's end.
                        let seen = b.next_multiple_of(ALIGN);
                        let lse = outer.lse.row(q_from + i)[0];
                        score_gradient(&mut p[..seen], &mut ds[..seen], lse, deltas[i], spec.softcap);
                        for x in [p, ds] {
                            x[..a].fill(0.0);
                            x[b..].fill(0.0);
                        }
                    }
                },
            );
            let (p, ds) = (Matrix::strided(p, count, keys, stride), Matrix::strided(ds, count, keys, stride));
            let output = if k_from > first { Output::Add } else { Output::Overwrite };
            gemm(spec.scale, ds, k, output, &mut dq.part(q_from, count, 0, dim));
            gemm(spec.scale, ds.t(), q, Output::Add, &mut dk.part(k_from, keys, 0, dim));
            gemm(1.0, p.t(), dout, Output::Add, &mut dv.part(k_from, keys, 0, dim));
        }
    }
}

pub(crate) fn cached(
    cpu: &Cpu,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    length: usize,
    spec: &AttentionSpec,
) -> Result<Tensor> {
    const OP: &str = "attention_cached";
    let n = check_cached(OP, q, k, v, length, spec)?;
    let (heads, dim) = (spec.heads, spec.head_dim);
    let mut out = cpu.empty_f32(OP, q.shape())?;
    let (q, k, v) = (views(cpu, OP, q)?, views(cpu, OP, k)?, views(cpu, OP, v)?);
    let outs = MatrixMut::new(cpu.f32_mut(OP, &mut out)?, n, heads * dim).grid(&[0, n], dim);
    let group = heads / spec.kv_heads;
    cpu.workers.each(outs.into_iter().enumerate(), |(head, mut out)| {
        let kv_column = head / group * dim;
        let views = Heads {
            q: q.part(0, n, head * dim, dim),
            k: k.part(0, length, kv_column, dim),
            v: v.part(0, length, kv_column, dim),
        };
        forward_head(&views, Mask::new(length - n, spec), spec, &mut out, None);
    });
    Ok(out)
}
