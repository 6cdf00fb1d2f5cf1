//! Checks of this operation against its plain reference.

use super::reference;
use crate::error::Result;
use crate::ops::check::{Check, Pairs, random};
use crate::ops::{AttentionSpec, Device, Segments};

pub(crate) const CHECKS: &[Check] = &[
    Check { operation: "attention", tolerance: 2e-5, products: false, run: attention },
    Check { operation: "attention_backward", tolerance: 1e-4, products: false, run: attention_backward },
    Check { operation: "attention_cached", tolerance: 2e-5, products: false, run: attention_cached },
];

fn spec(heads: usize, kv_heads: usize, head_dim: usize, softcap: Option<f32>, window: Option<usize>) -> AttentionSpec {
    AttentionSpec { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), softcap, window }
}

/// Document lengths and the shape of the layer.
fn attentions() -> Vec<(Vec<usize>, AttentionSpec)> {
    vec![
        (vec![1], spec(1, 1, 16, None, None)),
        (vec![70], spec(9, 3, 64, None, None)),
        (vec![1, 63, 64, 65, 1, 2], spec(9, 3, 16, None, None)),
        (vec![5, 100], spec(2, 2, 256, None, None)),
        (vec![30, 33], spec(4, 2, 128, Some(2.0), None)),
        (vec![1, 90, 20], spec(4, 1, 17, None, Some(8))),
        (vec![40], spec(2, 1, 80, Some(5.0), Some(30))),
    ]
}

/// q, k, v and do, with scores of a spread of some units.
fn attention_inputs(n: usize, spec: &AttentionSpec) -> [Vec<f32>; 4] {
    let (h, g) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let wide = |place, len| random(place, len).iter().map(|x| 2.0 * x).collect();
    [wide(1, n * h), wide(2, n * g), random(3, n * g), random(4, n * h)]
}

fn attention(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (lengths, spec) in attentions() {
        let segments = Segments::from_lengths(lengths);
        let n = segments.tokens();
        let [q, k, v, _] = attention_inputs(n, &spec);
        let (h, g) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let (qt, kt, vt) = (ops.upload(&[n, h], &q)?, ops.upload(&[n, g], &k)?, ops.upload(&[n, g], &v)?);
        let (o, lse) = ops.attention(&qt, &kt, &vt, &segments, &spec)?;
        let want = reference::forward(&q, &k, &v, &segments, &spec);
        pairs.extend([(ops.read(&o)?, want.0), (ops.read(&lse)?, want.1)]);
    }
    Ok(pairs)
}

fn attention_backward(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    // With one key p is 1 and the scores have no gradient: nothing to compare.
    for (lengths, spec) in attentions().into_iter().skip(1) {
        let segments = Segments::from_lengths(lengths);
        let n = segments.tokens();
        let [q, k, v, dout] = attention_inputs(n, &spec);
        let (h, g) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let (qt, kt, vt) = (ops.upload(&[n, h], &q)?, ops.upload(&[n, g], &k)?, ops.upload(&[n, g], &v)?);
        let (o, lse) = reference::forward(&q, &k, &v, &segments, &spec);
        let (ot, lt) = (ops.upload(&[n, h], &o)?, ops.upload(&[n, spec.heads], &lse)?);
        let dt = ops.upload(&[n, h], &dout)?;
        let (dq, dk, dv) = ops.attention_backward(&dt, &qt, &kt, &vt, &ot, &lt, &segments, &spec)?;
        let want = reference::backward(&dout, &q, &k, &v, &segments, &spec);
        pairs.extend([(ops.read(&dq)?, want.0), (ops.read(&dk)?, want.1), (ops.read(&dv)?, want.2)]);
    }
    Ok(pairs)
}

fn attention_cached(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (lengths, spec) in attentions().into_iter().filter(|(lengths, _)| lengths.len() == 1) {
        let n = lengths[0];
        let [q, k, v, _] = attention_inputs(n, &spec);
        let (h, g) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let (want, _) = reference::forward(&q, &k, &v, &Segments::from_lengths([n]), &spec);
        for queries in [1, n.div_ceil(2)] {
            let (mut keys, mut values) = (ops.zeros(&[n + 3, g])?, ops.zeros(&[n + 3, g])?);
            ops.write_rows(&mut keys, 0, &ops.upload(&[n, g], &k)?)?;
            ops.write_rows(&mut values, 0, &ops.upload(&[n, g], &v)?)?;
            let last = ops.upload(&[queries, h], &q[(n - queries) * h..])?;
            let got = ops.attention_cached(&last, &keys, &values, n, &spec)?;
            pairs.push((ops.read(&got)?, want[(n - queries) * h..].to_vec()));
        }
    }
    Ok(pairs)
}
