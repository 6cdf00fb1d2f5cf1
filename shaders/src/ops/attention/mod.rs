//! Causal attention within each document, with grouped key heads, a sliding
//! window and soft-capped scores, forward and backward.
//!
//! For a query at position i and keys j ≤ i of the same document (and
//! `j > i − window`): `s = scale · q·k`, `s = cap · tanh(s / cap)` if there
//! is a cap, `p = softmax(s)`, `o = Σ p v`. q `[N, H·D]`, k and v `[N, G·D]`,
//! o `[N, H·D]`, lse `[N, H]`; query head h reads key head h / (H/G).
//!
//! Backward (Dao, 2023, FlashAttention-2): with `δ = Σ do ⊙ o`,
//! `dv = pᵀ do`, `ds = p (do vᵀ − δ)` (times `1 − (s/cap)²`),
//! `dq = scale · ds k`, `dk = scale · dsᵀ q`.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;
#[cfg(all(test, feature = "gpu"))]
mod tests_gpu;

use super::{Device, Operation, device::Backend};
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;

/// Where the documents of a flat micro-batch begin and end:
/// `bounds[i]..bounds[i + 1]` are the tokens of document `i`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    bounds: Vec<usize>,
}
impl Segments {
    /// From the lengths of the documents; empty ones are dropped.
    pub fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Segments {
        let mut bounds = vec![0];
        let mut end = 0;
        for length in lengths.into_iter().filter(|length| *length > 0) {
            end += length;
            bounds.push(end);
        }
        Segments { bounds }
    }

    /// All tokens.
    pub fn tokens(&self) -> usize {
        self.bounds.last().copied().unwrap_or(0)
    }

    pub fn count(&self) -> usize {
        self.bounds.len() - 1
    }

    pub fn ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        self.bounds.windows(2).map(|w| w[0]..w[1])
    }

    pub fn longest(&self) -> usize {
        self.ranges().map(|r| r.len()).max().unwrap_or(0)
    }

    /// Position of every token in its own document, from 0.
    pub fn positions(&self) -> Vec<u32> {
        self.ranges().flat_map(|r| 0..r.len() as u32).collect()
    }

    pub fn bounds(&self) -> &[usize] {
        &self.bounds
    }
}
/// The shape and the numbers of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Scores are `scale · q·k`.
    pub scale: f32,
    /// `cap · tanh(score / cap)` (Gemma 2).
    pub softcap: Option<f32>,
    /// A query at position i sees keys j with `i - window < j <= i`.
    pub window: Option<usize>,
}

/// Multiplications and additions of causal attention: half of each document's square,
/// for the scores and for the mixture.
fn attention_flops(segments: &Segments, spec: &AttentionSpec) -> f64 {
    let width = (spec.heads * spec.head_dim) as f64;
    let pairs = |length: usize| {
        let window = spec.window.map_or(length, |window| window.min(length)) as f64;
        length as f64 * window - 0.5 * window * window
    };
    4.0 * width * segments.ranges().map(|range| pairs(range.len())).sum::<f64>()
}

impl Device {
    /// Causal attention within each document. q `[N, H·D]`, k and v `[N, G·D]`;
    /// query head h reads key head h / (H/G). Returns o `[N, H·D]` and the
    /// scores' log-sum-exp `[N, H]`.
    pub fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        segments: &Segments,
        spec: &AttentionSpec,
    ) -> Result<(Tensor, Tensor)> {
        self.timed(Operation::Attention, || match self.backend() {
            Backend::Cpu(cpu) => cpu::forward(cpu, q, k, v, segments, spec),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::forward(gpu, q, k, v, segments, spec),
            Backend::Counting(count) => {
                count.add_flops(attention_flops(segments, spec));
                Ok((count.f32("attention", q.shape())?, count.f32("attention", &[q.rows(), spec.heads])?))
            }
        })
    }

    /// (dq, dk, dv), recomputing the scores: nothing of size T×T outlives a tile.
    #[allow(clippy::too_many_arguments)]
    pub fn attention_backward(
        &self,
        dout: &Tensor,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        lse: &Tensor,
        segments: &Segments,
        spec: &AttentionSpec,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        self.timed(Operation::AttentionBackward, || match self.backend() {
            Backend::Cpu(cpu) => cpu::backward(cpu, dout, q, k, v, out, lse, segments, spec),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::backward(gpu, dout, q, k, v, out, lse, segments, spec),
            Backend::Counting(count) => {
                const OP: &str = "attention_backward";
                // The scores again, and two products for each of theirs.
                count.add_flops(2.5 * attention_flops(segments, spec));
                let _sums = count.f32(OP, lse.shape())?;
                Ok((count.f32(OP, q.shape())?, count.f32(OP, k.shape())?, count.f32(OP, v.shape())?))
            }
        })
    }

    /// Attention of the last `n` positions of one sequence against its cache:
    /// q `[n, H·D]`; the caches `[capacity, G·D]` hold `length` rows, the last
    /// `n` of which belong to the queries.
    pub fn attention_cached(
        &self,
        q: &Tensor,
        k_cache: &Tensor,
        v_cache: &Tensor,
        length: usize,
        spec: &AttentionSpec,
    ) -> Result<Tensor> {
        self.timed(Operation::AttentionCached, || match self.backend() {
            Backend::Cpu(cpu) => cpu::cached(cpu, q, k_cache, v_cache, length, spec),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::cached(gpu, q, k_cache, v_cache, length, spec),
            Backend::Counting(count) => {
                count.add_flops(4.0 * (q.rows() * length * spec.heads * spec.head_dim) as f64);
                count.f32("attention_cached", q.shape())
            }
        })
    }
}

/// The heads must divide and the numbers make sense.
pub(crate) fn check_spec(op: &'static str, spec: &AttentionSpec) -> Result<()> {
    let heads = spec.kv_heads > 0 && spec.heads > 0 && spec.heads.is_multiple_of(spec.kv_heads) && spec.head_dim > 0;
    if !heads || spec.window == Some(0) || spec.softcap.is_some_and(|cap| cap.is_nan() || cap <= 0.0) {
        return Err(shape_error(op, "heads that kv_heads divides, a window and a cap above 0", format!("{spec:?}")));
    }
    Ok(())
}

/// q, k, v of all the documents' tokens.
pub(crate) fn check(
    op: &'static str,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    segments: &Segments,
    spec: &AttentionSpec,
) -> Result<()> {
    check_spec(op, spec)?;
    let n = segments.tokens();
    q.expect_shape(op, &[n, spec.heads * spec.head_dim])?;
    k.expect_shape(op, &[n, spec.kv_heads * spec.head_dim])?;
    v.expect_shape(op, &[n, spec.kv_heads * spec.head_dim])
}

/// q of the last positions, and caches that hold them; gives the number of
/// queries.
pub(crate) fn check_cached(
    op: &'static str,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    length: usize,
    spec: &AttentionSpec,
) -> Result<usize> {
    check_spec(op, spec)?;
    let n = q.rows();
    q.expect_shape(op, &[n, spec.heads * spec.head_dim])?;
    k.expect_shape(op, &[k.rows(), spec.kv_heads * spec.head_dim])?;
    v.expect_shape(op, k.shape())?;
    if n > length || length > k.rows() {
        return Err(shape_error(op, format!("{n} queries ≤ length ≤ {} cache rows", k.rows()), format!("{length}")));
    }
    Ok(n)
}
