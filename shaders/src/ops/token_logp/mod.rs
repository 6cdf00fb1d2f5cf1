//! The LM head and the statistics of the next-token distribution, forward and
//! backward, in chunks of rows: the whole `[M, V]` logits matrix never exists.
//!
//! With `z = h Wᵀ`, `l = softcap(z)`, `lse = ln Σ e^l`, `p = e^(l − lse)` and a
//! target t: `logp = l_t − lse`, `entropy H = lse − Σ p l`,
//! `mean_logp = mean(l) − lse`. For coefficients a, b, e, c of logp, lse,
//! entropy and mean_logp:
//!
//! `dl_j = p_j (b − a − c − e (l_j − lse + H)) + c/V + a [j = t]`
//! and `dz = dl (1 − (l/cap)²)`.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;
#[cfg(all(test, feature = "gpu"))]
mod tests_gpu;

use super::{
    Device, Operation, Weight,
    device::{Backend, Counting},
    gather,
    linear::{check_columns, count_unpacked, weight_shape},
    matmul::count_product,
};
use crate::error::{Result, shape_error};
use crate::ledger::Counted;
use crate::tensor::Tensor;

/// Which statistics of the next-token distribution are wanted beside `logp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatisticSet {
    pub entropy: bool,
    pub mean_logp: bool,
    /// Whether the target is the most likely token (for accuracy).
    pub correct: bool,
}
/// Statistics of each asked-for token, in nats, on the host: kilobytes,
/// whatever the vocabulary.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenStatistics {
    /// log p(target).
    pub logp: Vec<f32>,
    /// log-sum-exp of the (soft-capped) logits.
    pub lse: Vec<f32>,
    /// −Σ p log p; empty where not asked for.
    pub entropy: Vec<f32>,
    /// The mean over the vocabulary of log p (label smoothing).
    pub mean_logp: Vec<f32>,
    /// Whether no token is more likely than the target; empty where not asked
    /// for.
    pub correct: Vec<bool>,
}
/// d loss / d statistic per token. An empty vector is zero everywhere.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenCoefficients {
    pub logp: Vec<f32>,
    pub lse: Vec<f32>,
    pub entropy: Vec<f32>,
    pub mean_logp: Vec<f32>,
}
/// The LM head: logits `= softcap(h Wᵀ + b)`.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// `[V, C]`.
    pub weight: &'a Weight,
    /// `cap · tanh(logit / cap)` (Gemma 2).
    pub softcap: Option<f32>,
    /// At most this many rows of logits exist at a time; 0 lets the device
    /// choose.
    pub chunk_rows: usize,
}

/// The memory of the head's chunks, and (M, V, C).
fn count_head(
    count: &Counting,
    op: &'static str,
    h: &Tensor,
    head: &Head,
    targets: &[u32],
) -> Result<(Vec<Counted>, f64)> {
    let (m, v, c) = check_head(op, h, head)?;
    if targets.len() != m {
        return Err(shape_error(op, format!("{m} targets"), targets.len().to_string()));
    }
    let mut held = vec![count.scratch(count.like.head_bytes(m, v, c))];
    held.extend(count_unpacked(count, head.weight)?);
    Ok((held, 2.0 * m as f64 * v as f64 * c as f64))
}

/// Statistics of tokens of probability 1/e.
fn count_statistics(rows: usize, want: StatisticSet) -> TokenStatistics {
    let optional = |wanted: bool, value: f32| if wanted { vec![value; rows] } else { Vec::new() };
    TokenStatistics {
        logp: vec![-1.0; rows],
        lse: vec![0.0; rows],
        entropy: optional(want.entropy, 1.0),
        mean_logp: optional(want.mean_logp, -1.0),
        correct: if want.correct { vec![false; rows] } else { Vec::new() },
    }
}

impl Device {
    /// Bytes that exist while the head `[V, C]` takes so many rows forth and back,
    /// beside its input and that one's gradient: a chunk of logits (where
    /// [`Head::chunk_rows`] is 0) and what goes with them.
    pub(crate) fn head_bytes(&self, rows: usize, vocabulary: usize, columns: usize) -> u64 {
        match self.backend() {
            Backend::Cpu(_) => cpu::scratch_bytes(rows, vocabulary, columns),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => {
                let bytes = kernel::scratch_bytes(rows, vocabulary, columns);
                // Tensor cores take their operands rounded, and may give sums to be scaled.
                if gpu.facts().tensor_cores.is_some() { 2 * bytes } else { bytes }
            }
            Backend::Counting(count) => count.like.head_bytes(rows, vocabulary, columns),
        }
    }

    /// The logits `[M, V]` themselves, for generation and tests.
    pub fn logits(&self, h: &Tensor, head: &Head) -> Result<Tensor> {
        self.timed(Operation::Logits, || match self.backend() {
            Backend::Cpu(cpu) => cpu::logits(cpu, h, head),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::logits(gpu, h, head),
            Backend::Counting(count) => {
                let (vocabulary, columns) = weight_shape("logits", head.weight)?;
                let _unpacked = count_unpacked(count, head.weight)?;
                count_product(count, "logits", (h.rows(), columns, vocabulary), None)
            }
        })
    }

    /// Statistics of `targets` under the next-token distributions of `h [M, C]`,
    /// in chunks of rows: the whole logits matrix never exists.
    pub fn token_logp(&self, h: &Tensor, head: &Head, targets: &[u32], want: StatisticSet) -> Result<TokenStatistics> {
        self.timed(Operation::TokenLogp, || match self.backend() {
            Backend::Cpu(cpu) => cpu::forward(cpu, h, head, targets, want),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::forward(gpu, h, head, targets, want),
            Backend::Counting(count) => {
                let (_held, flops) = count_head(count, "token_logp", h, head, targets)?;
                count.add_flops(flops);
                Ok(count_statistics(targets.len(), want))
            }
        })
    }

    /// dh `[M, C]`, and dW += …, from d loss / d statistic; recomputes the
    /// logits chunk by chunk.
    pub fn token_logp_backward(
        &self,
        h: &Tensor,
        head: &Head,
        targets: &[u32],
        coefficients: &TokenCoefficients,
        dweight: Option<&mut Tensor>,
    ) -> Result<Tensor> {
        self.timed(Operation::TokenLogpBackward, || match self.backend() {
            Backend::Cpu(cpu) => cpu::backward(cpu, h, head, targets, coefficients, dweight),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::backward(gpu, h, head, targets, coefficients, dweight),
            Backend::Counting(count) => {
                let (_held, flops) = count_head(count, "token_logp_backward", h, head, targets)?;
                count.add_flops(flops * if dweight.is_some() { 3.0 } else { 2.0 });
                count.f32("token_logp_backward", h.shape())
            }
        })
    }

    /// Both in one pass over the chunks, for losses whose coefficients are known
    /// beforehand (cross-entropy): the logits are computed once.
    #[allow(clippy::too_many_arguments)]
    pub fn token_logp_fused(
        &self,
        h: &Tensor,
        head: &Head,
        targets: &[u32],
        want: StatisticSet,
        coefficients: &TokenCoefficients,
        dweight: Option<&mut Tensor>,
    ) -> Result<(TokenStatistics, Tensor)> {
        self.timed(Operation::TokenLogpFused, || match self.backend() {
            Backend::Cpu(cpu) => cpu::fused(cpu, h, head, targets, want, coefficients, dweight),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::fused(gpu, h, head, targets, want, coefficients, dweight),
            Backend::Counting(count) => {
                let (_held, flops) = count_head(count, "token_logp_fused", h, head, targets)?;
                count.add_flops(flops * if dweight.is_some() { 3.0 } else { 2.0 });
                Ok((count_statistics(targets.len(), want), count.f32("token_logp_fused", h.shape())?))
            }
        })
    }
}

/// Shapes of the head's parts; gives (M, V, C).
pub(crate) fn check_head(op: &'static str, h: &Tensor, head: &Head) -> Result<(usize, usize, usize)> {
    let (vocabulary, width) = weight_shape(op, head.weight)?;
    check_columns(op, h, width)?;
    if head.softcap.is_some_and(|cap| cap.is_nan() || cap <= 0.0) || vocabulary == 0 {
        return Err(shape_error(op, "a vocabulary and a cap above 0", format!("{vocabulary}, {:?}", head.softcap)));
    }
    Ok((h.rows(), vocabulary, width))
}

/// One target per row, each in the vocabulary.
pub(crate) fn check_targets(op: &'static str, targets: &[u32], rows: usize, vocabulary: usize) -> Result<()> {
    if targets.len() != rows {
        return Err(shape_error(op, format!("{rows} targets"), format!("{}", targets.len())));
    }
    gather::check_indices(op, targets, vocabulary)
}

/// Every list of coefficients is empty or has one number a row.
pub(crate) fn check_coefficients(op: &'static str, coefficients: &TokenCoefficients, rows: usize) -> Result<()> {
    let TokenCoefficients { logp, lse, entropy, mean_logp } = coefficients;
    for list in [logp, lse, entropy, mean_logp] {
        if !list.is_empty() && list.len() != rows {
            return Err(shape_error(op, format!("{rows} coefficients"), format!("{}", list.len())));
        }
    }
    Ok(())
}
