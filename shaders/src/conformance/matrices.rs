//! Checks of matrix products, attention and the LM head.

use super::{Pairs, plus, random};
use crate::error::Result;
use crate::ops::{
    AttentionSpec, Head, Ops, Segments, StatisticSet, TokenCoefficients, TokenStatistics, Weight,
    attention as attention_op, linear as linear_op, matmul as matmul_op, token_logp as token_logp_op,
};

pub(super) fn matmul(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (m, k, n) in [(1, 1, 1), (1, 576, 64), (33, 43, 65), (128, 128, 128), (70, 16, 577), (16, 300, 7)] {
        let (a, b, before) = (random(1, m * k), random(2, k * n), random(3, m * n));
        let product = matmul_op::reference::matmul(&a, &b, m, k, n);
        for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
            let flip = matmul_op::reference::transpose;
            let at = if transpose_a { ops.upload(&[k, m], &flip(&a, m, k)) } else { ops.upload(&[m, k], &a) }?;
            let bt = if transpose_b { ops.upload(&[n, k], &flip(&b, k, n)) } else { ops.upload(&[k, n], &b) }?;
            let got = ops.matmul(&at, transpose_a, &bt, transpose_b, 1.0, None)?;
            pairs.push((ops.read(&got)?, product.clone()));
            let into = Some(ops.upload(&[m, n], &before)?);
            let got = ops.matmul(&at, transpose_a, &bt, transpose_b, -2.0, into)?;
            let scaled: Vec<f32> = product.iter().map(|x| -2.0 * x).collect();
            pairs.push((ops.read(&got)?, plus(&before, &scaled)));
        }
    }
    Ok(pairs)
}

const LINEARS: [(usize, usize, usize); 4] = [(1, 64, 48), (5, 3, 7), (33, 43, 65), (40, 320, 130)];

/// The weight in each type it can be kept in.
fn weights(ops: &dyn Ops, shape: [usize; 2], values: &[f32]) -> Result<Vec<Weight>> {
    Ok(vec![
        Weight::Dense(ops.upload(&shape, values)?),
        Weight::Dense(ops.upload_bf16(&shape, values)?),
        ops.upload_nf4(&shape, values, false)?,
        ops.upload_nf4(&shape, values, true)?,
    ])
}

pub(super) fn linear(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, inputs, outputs) in LINEARS {
        let (x, w) = (random(1, n * inputs), random(2, outputs * inputs));
        let xt = ops.upload(&[n, inputs], &x)?;
        for weight in weights(ops, [outputs, inputs], &w)? {
            let values = ops.read_weight(&weight)?;
            let want = linear_op::reference::forward(&x, &values, n, inputs, outputs);
            pairs.push((ops.read(&ops.linear(&xt, &weight)?)?, want));
        }
    }
    Ok(pairs)
}

pub(super) fn linear_backward(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, inputs, outputs) in LINEARS {
        let (dy, w, before) = (random(1, n * outputs), random(2, outputs * inputs), random(3, n * inputs));
        let dyt = ops.upload(&[n, outputs], &dy)?;
        for weight in weights(ops, [outputs, inputs], &w)? {
            let values = ops.read_weight(&weight)?;
            let want = linear_op::reference::backward(&dy, &values, n, inputs, outputs);
            let into = Some(ops.upload(&[n, inputs], &before)?);
            pairs.push((ops.read(&ops.linear_backward(&dyt, &weight, into)?)?, plus(&before, &want)));
            pairs.push((ops.read(&ops.linear_backward(&dyt, &weight, None)?)?, want));
        }
    }
    Ok(pairs)
}

pub(super) fn linear_weight_backward(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, inputs, outputs) in [(1, 3, 2), (65, 576, 16), (100, 33, 130)] {
        let (x, dy, before) = (random(1, n * inputs), random(2, n * outputs), random(3, outputs * inputs));
        let mut dw = ops.upload(&[outputs, inputs], &before)?;
        ops.linear_weight_backward(&ops.upload(&[n, outputs], &dy)?, &ops.upload(&[n, inputs], &x)?, &mut dw)?;
        let want = linear_op::reference::weight_backward(&dy, &x, n, inputs, outputs);
        pairs.push((ops.read(&dw)?, plus(&before, &want)));
    }
    Ok(pairs)
}

pub(super) fn dora_norm(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (inputs, outputs, rank) in [(64, 48, 4), (43, 65, 1)] {
        let (w, a, b) = (random(1, outputs * inputs), random(2, rank * inputs), random(3, outputs * rank));
        let (at, bt) = (ops.upload(&[rank, inputs], &a)?, ops.upload(&[outputs, rank], &b)?);
        for weight in weights(ops, [outputs, inputs], &w)? {
            let mut sum = ops.read_weight(&weight)?;
            let low = matmul_op::reference::matmul(&b, &a, outputs, rank, inputs);
            sum.iter_mut().zip(&low).for_each(|(w, low)| *w += 0.5 * low);
            let norm = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32;
            let want = sum.chunks_exact(inputs).map(norm).collect();
            pairs.push((ops.read(&ops.dora_norm(&weight, &at, &bt, 0.5)?)?, want));
        }
    }
    Ok(pairs)
}

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

pub(super) fn attention(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (lengths, spec) in attentions() {
        let segments = Segments::from_lengths(lengths);
        let n = segments.tokens();
        let [q, k, v, _] = attention_inputs(n, &spec);
        let (h, g) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let (qt, kt, vt) = (ops.upload(&[n, h], &q)?, ops.upload(&[n, g], &k)?, ops.upload(&[n, g], &v)?);
        let (o, lse) = ops.attention(&qt, &kt, &vt, &segments, &spec)?;
        let want = attention_op::reference::forward(&q, &k, &v, &segments, &spec);
        pairs.extend([(ops.read(&o)?, want.0), (ops.read(&lse)?, want.1)]);
    }
    Ok(pairs)
}

pub(super) fn attention_backward(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    // With one key p is 1 and the scores have no gradient: nothing to compare.
    for (lengths, spec) in attentions().into_iter().skip(1) {
        let segments = Segments::from_lengths(lengths);
        let n = segments.tokens();
        let [q, k, v, dout] = attention_inputs(n, &spec);
        let (h, g) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let (qt, kt, vt) = (ops.upload(&[n, h], &q)?, ops.upload(&[n, g], &k)?, ops.upload(&[n, g], &v)?);
        let (o, lse) = attention_op::reference::forward(&q, &k, &v, &segments, &spec);
        let (ot, lt) = (ops.upload(&[n, h], &o)?, ops.upload(&[n, spec.heads], &lse)?);
        let dt = ops.upload(&[n, h], &dout)?;
        let (dq, dk, dv) = ops.attention_backward(&dt, &qt, &kt, &vt, &ot, &lt, &segments, &spec)?;
        let want = attention_op::reference::backward(&dout, &q, &k, &v, &segments, &spec);
        pairs.extend([(ops.read(&dq)?, want.0), (ops.read(&dk)?, want.1), (ops.read(&dv)?, want.2)]);
    }
    Ok(pairs)
}

pub(super) fn attention_cached(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (lengths, spec) in attentions().into_iter().filter(|(lengths, _)| lengths.len() == 1) {
        let n = lengths[0];
        let [q, k, v, _] = attention_inputs(n, &spec);
        let (h, g) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let (want, _) = attention_op::reference::forward(&q, &k, &v, &Segments::from_lengths([n]), &spec);
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

const ALL: StatisticSet = StatisticSet { entropy: true, mean_logp: true, correct: true };
/// Rows, width, vocabulary and rows of a chunk.
const HEADS: [(usize, usize, usize, usize); 3] = [(1, 8, 5, 0), (3, 16, 49_153, 2), (70, 24, 301, 32)];

fn targets(m: usize, v: usize) -> Vec<u32> {
    (0..m).map(|i| if i == 0 { v - 1 } else { i * 37 % v } as u32).collect()
}

fn flat(s: TokenStatistics) -> [Vec<f32>; 5] {
    let correct = s.correct.iter().map(|correct| f32::from(u8::from(*correct))).collect();
    [s.logp, s.lse, s.entropy, s.mean_logp, correct]
}

pub(super) fn token_logp(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (m, c, v, chunk_rows) in HEADS {
        for softcap in [None, Some(3.0)] {
            let (h, w, t) = (random(1, m * c), random(2, v * c), targets(m, v));
            let weight = Weight::Dense(ops.upload(&[v, c], &w)?);
            let head = Head { weight: &weight, softcap, chunk_rows };
            let ht = ops.upload(&[m, c], &h)?;
            let logits = token_logp_op::reference::logits(&h, &w, softcap, m, c, v);
            let want = flat(token_logp_op::reference::statistics(&logits, &t));
            pairs.extend(flat(ops.token_logp(&ht, &head, &t, ALL)?).into_iter().zip(want));
            pairs.push((ops.read(&ops.logits(&ht, &head)?)?, logits));
        }
    }
    Ok(pairs)
}

pub(super) fn token_logp_backward(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (m, c, v, chunk_rows) in HEADS {
        for softcap in [None, Some(3.0)] {
            let (h, w, before, t) = (random(1, m * c), random(2, v * c), random(3, v * c), targets(m, v));
            let d = TokenCoefficients {
                logp: random(5, m),
                lse: random(6, m),
                entropy: random(7, m),
                mean_logp: random(8, m),
            };
            let weight = Weight::Dense(ops.upload(&[v, c], &w)?);
            let head = Head { weight: &weight, softcap, chunk_rows };
            let ht = ops.upload(&[m, c], &h)?;
            let logits = token_logp_op::reference::logits(&h, &w, softcap, m, c, v);
            let dz = token_logp_op::reference::dlogits(&logits, softcap, &t, &d);
            let dh_want = matmul_op::reference::matmul(&dz, &w, m, v, c);
            let dw_want = plus(&before, &linear_op::reference::weight_backward(&dz, &h, m, c, v));
            let mut dw = ops.upload(&[v, c], &before)?;
            let dh = ops.token_logp_backward(&ht, &head, &t, &d, Some(&mut dw))?;
            pairs.extend([(ops.read(&dh)?, dh_want.clone()), (ops.read(&dw)?, dw_want.clone())]);
            let mut dw = ops.upload(&[v, c], &before)?;
            let (_, dh) = ops.token_logp_fused(&ht, &head, &t, ALL, &d, Some(&mut dw))?;
            pairs.extend([(ops.read(&dh)?, dh_want), (ops.read(&dw)?, dw_want)]);
        }
    }
    Ok(pairs)
}
