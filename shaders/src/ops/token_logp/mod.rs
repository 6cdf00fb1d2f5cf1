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

use super::linear::{check_columns, weight_shape};
use super::{Head, TokenCoefficients, gather};
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;

/// Shapes of the head's parts; gives (M, V, C).
pub(crate) fn check_head(op: &'static str, h: &Tensor, head: &Head) -> Result<(usize, usize, usize)> {
    let (vocabulary, width) = weight_shape(op, head.weight)?;
    check_columns(op, h, width)?;
    if head.softcap.is_some_and(|cap| cap.is_nan() || cap <= 0.0) || vocabulary == 0 {
        return Err(shape_error(op, "a vocabulary and a cap above 0", format!("{vocabulary}, {:?}", head.softcap)));
    }
    Ok((h.rows(), vocabulary, width))
}

/// One target for each row, each in the vocabulary.
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
