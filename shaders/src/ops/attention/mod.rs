//! Causal attention within each document, with grouped key heads, a sliding
//! window and soft-capped scores, forward and backward.
//!
//! For a query at position i and keys j ≤ i of the same document (and
//! `j > i − window`): `s = scale · q·k`, `s = cap · tanh(s / cap)` where there
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

use super::{AttentionSpec, Segments};
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;

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
