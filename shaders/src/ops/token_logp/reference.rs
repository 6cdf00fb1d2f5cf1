//! The definition, in f64.

use crate::ops::linear;
use crate::ops::{TokenCoefficients, TokenStatistics};

/// softcap(h Wᵀ) `[M, V]`.
pub fn logits(h: &[f32], w: &[f32], softcap: Option<f32>, m: usize, c: usize, v: usize) -> Vec<f32> {
    let z = linear::reference::forward(h, w, m, c, v);
    match softcap {
        Some(cap) => z.iter().map(|z| (f64::from(cap) * (f64::from(*z) / f64::from(cap)).tanh()) as f32).collect(),
        None => z,
    }
}

/// All the statistics of rows of logits.
pub fn statistics(logits: &[f32], targets: &[u32]) -> TokenStatistics {
    let mut all = TokenStatistics::default();
    let v = logits.len() / targets.len().max(1);
    for (row, target) in logits.chunks_exact(v).zip(targets) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|l| (f64::from(*l) - f64::from(max)).exp()).sum();
        let lse = f64::from(max) + sum.ln();
        let weighted: f64 = row.iter().map(|l| (f64::from(*l) - lse).exp() * f64::from(*l)).sum();
        let mean = row.iter().map(|l| f64::from(*l)).sum::<f64>() / v as f64;
        all.logp.push((f64::from(row[*target as usize]) - lse) as f32);
        all.lse.push(lse as f32);
        all.entropy.push((lse - weighted) as f32);
        all.mean_logp.push((mean - lse) as f32);
        all.correct.push(row[*target as usize] == max);
    }
    all
}

/// d loss / d z `[M, V]` from the logits.
pub fn dlogits(logits: &[f32], softcap: Option<f32>, targets: &[u32], d: &TokenCoefficients) -> Vec<f32> {
    let v = logits.len() / targets.len().max(1);
    let all = statistics(logits, targets);
    let at = |list: &[f32], row: usize| list.get(row).map_or(0.0, |x| f64::from(*x));
    let mut out = Vec::with_capacity(logits.len());
    for (row, (l, target)) in logits.chunks_exact(v).zip(targets).enumerate() {
        let (a, b, e, c) = (at(&d.logp, row), at(&d.lse, row), at(&d.entropy, row), at(&d.mean_logp, row));
        let (lse, entropy) = (f64::from(all.lse[row]), f64::from(all.entropy[row]));
        for (j, l) in l.iter().enumerate() {
            let l = f64::from(*l);
            let p = (l - lse).exp();
            let mut dl = p * (b - a - c - e * (l - lse + entropy)) + c / v as f64;
            if j == *target as usize {
                dl += a;
            }
            let slope = softcap.map_or(1.0, |cap| 1.0 - (l / f64::from(cap)).powi(2));
            out.push((dl * slope) as f32);
        }
    }
    out
}
