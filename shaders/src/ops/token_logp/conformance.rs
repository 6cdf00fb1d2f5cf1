//! Checks of this operation against its plain reference.

use super::reference;
use crate::error::Result;
use crate::ops::check::{Check, Pairs, plus, random};
use crate::ops::{Device, Head, StatisticSet, TokenCoefficients, TokenStatistics, Weight, linear, matmul};

pub(crate) const CHECKS: &[Check] = &[
    Check { operation: "token_logp", tolerance: 2e-5, products: true, run: token_logp },
    Check { operation: "token_logp_backward", tolerance: 5e-5, products: true, run: token_logp_backward },
];

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

fn token_logp(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (m, c, v, chunk_rows) in HEADS {
        for softcap in [None, Some(3.0)] {
            let (h, w, t) = (random(1, m * c), random(2, v * c), targets(m, v));
            let weight = Weight::Dense(ops.upload(&[v, c], &w)?);
            let head = Head { weight: &weight, softcap, chunk_rows };
            let ht = ops.upload(&[m, c], &h)?;
            let logits = reference::logits(&h, &w, softcap, m, c, v);
            let want = flat(reference::statistics(&logits, &t));
            pairs.extend(flat(ops.token_logp(&ht, &head, &t, ALL)?).into_iter().zip(want));
            pairs.push((ops.read(&ops.logits(&ht, &head)?)?, logits));
        }
    }
    Ok(pairs)
}

fn token_logp_backward(ops: &Device) -> Result<Pairs> {
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
            let logits = reference::logits(&h, &w, softcap, m, c, v);
            let dz = reference::dlogits(&logits, softcap, &t, &d);
            let dh_want = matmul::reference::matmul(&dz, &w, m, v, c);
            let dw_want = plus(&before, &linear::reference::weight_backward(&dz, &h, m, c, v));
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
