//! Checks of this operation against its plain reference.

use super::reference;
use crate::error::Result;
use crate::ops::Device;
use crate::ops::check::{Check, Pairs, random, some_indices};

pub(crate) const CHECKS: &[Check] = &[
    Check { operation: "embedding", tolerance: 1e-6, products: false, run: embedding },
    Check { operation: "embedding_backward", tolerance: 1e-6, products: false, run: embedding_backward },
];

fn embedding(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, v, c) in [(1, 5, 8), (33, 300, 65)] {
        let table = random(1, v * c);
        let halves: Vec<f32> = table.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
        let ids: Vec<u32> = (0..n).map(|i| (i * 31 % v) as u32).collect();
        let got = ops.embedding(&ids, &ops.upload(&[v, c], &table)?, 1.5)?;
        pairs.push((ops.read(&got)?, reference::forward(&ids, &table, c, 1.5)));
        let got = ops.embedding(&ids, &ops.upload_bf16(&[v, c], &table)?, 1.5)?;
        pairs.push((ops.read(&got)?, reference::forward(&ids, &halves, c, 1.5)));
    }
    Ok(pairs)
}

fn embedding_backward(ops: &Device) -> Result<Pairs> {
    let (n, v, c) = (50, 40, 33);
    let (dy, before) = (random(1, n * c), random(2, v * c));
    let ids = some_indices(n, v);
    let mut dtable = ops.upload(&[v, c], &before)?;
    ops.embedding_backward(&ids, &ops.upload(&[n, c], &dy)?, 0.5, &mut dtable)?;
    let mut want = before;
    reference::backward(&ids, &dy, c, 0.5, &mut want);
    Ok(vec![(ops.read(&dtable)?, want)])
}
