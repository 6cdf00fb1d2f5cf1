//! The definition, in plain loops over every pair, summed in f64.

use crate::ops::{AttentionSpec, Segments};

/// The score of query row i and key row j after the cap, and the cap's slope.
fn score(q: &[f32], k: &[f32], spec: &AttentionSpec) -> (f64, f64) {
    let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
    let raw = f64::from(spec.scale) * dot;
    match spec.softcap {
        Some(cap) => {
            let t = (raw / f64::from(cap)).tanh();
            (f64::from(cap) * t, 1.0 - t * t)
        }
        None => (raw, 1.0),
    }
}

fn head(x: &[f32], row: usize, heads: usize, head: usize, dim: usize) -> &[f32] {
    &x[(row * heads + head) * dim..][..dim]
}

/// The keys that the query at row i of the document that begins at `start`
/// sees.
fn visible(i: usize, start: usize, spec: &AttentionSpec) -> std::ops::Range<usize> {
    let first = spec.window.map_or(start, |window| (i + 1).saturating_sub(window).max(start));
    first..i + 1
}

/// o and the log-sum-exp of the scores.
pub fn forward(q: &[f32], k: &[f32], v: &[f32], segments: &Segments, spec: &AttentionSpec) -> (Vec<f32>, Vec<f32>) {
    let (h, g, d) = (spec.heads, spec.kv_heads, spec.head_dim);
    let mut o = vec![0.0; q.len()];
    let mut lse = vec![0.0; segments.tokens() * h];
    for document in segments.ranges() {
        for i in document.clone() {
            for a in 0..h {
                let b = a / (h / g);
                let keys = visible(i, document.start, spec);
                let s: Vec<f64> =
                    keys.clone().map(|j| score(head(q, i, h, a, d), head(k, j, g, b, d), spec).0).collect();
                let max = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = s.iter().map(|s| (s - max).exp()).sum();
                lse[i * h + a] = (max + sum.ln()) as f32;
                for e in 0..d {
                    let weighted = s
                        .iter()
                        .zip(keys.clone())
                        .map(|(s, j)| (s - max).exp() / sum * f64::from(head(v, j, g, b, d)[e]));
                    o[(i * h + a) * d + e] = weighted.sum::<f64>() as f32;
                }
            }
        }
    }
    (o, lse)
}

/// dq, dk, dv.
pub fn backward(
    dout: &[f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    segments: &Segments,
    spec: &AttentionSpec,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (h, g, d) = (spec.heads, spec.kv_heads, spec.head_dim);
    let (mut dq, mut dk, mut dv) = (vec![0.0f64; q.len()], vec![0.0f64; k.len()], vec![0.0f64; v.len()]);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    for document in segments.ranges() {
        for i in document.clone() {
            for a in 0..h {
                let b = a / (h / g);
                let keys = visible(i, document.start, spec);
                let s: Vec<(f64, f64)> =
                    keys.clone().map(|j| score(head(q, i, h, a, d), head(k, j, g, b, d), spec)).collect();
                let max = s.iter().map(|s| s.0).fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = s.iter().map(|s| (s.0 - max).exp()).sum();
                let p: Vec<f64> = s.iter().map(|s| (s.0 - max).exp() / sum).collect();
                let dp: Vec<f64> = keys.clone().map(|j| dot(head(dout, i, h, a, d), head(v, j, g, b, d))).collect();
                let delta: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                for (n, j) in keys.clone().enumerate() {
                    let ds = p[n] * (dp[n] - delta) * s[n].1 * f64::from(spec.scale);
                    for e in 0..d {
                        let (qi, kj) = ((i * h + a) * d + e, (j * g + b) * d + e);
                        dq[qi] += ds * f64::from(k[kj]);
                        dk[kj] += ds * f64::from(q[qi]);
                        dv[kj] += p[n] * f64::from(dout[qi]);
                    }
                }
            }
        }
    }
    let narrow = |x: Vec<f64>| x.into_iter().map(|x| x as f32).collect();
    (narrow(dq), narrow(dk), narrow(dv))
}
