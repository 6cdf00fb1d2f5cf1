//! Checks of this operation against its plain reference.

use super::reference;
use crate::error::Result;
use crate::ops::check::{Check, Pairs, plus, random};
use crate::ops::{Device, Weight, matmul};

pub(crate) const CHECKS: &[Check] = &[
    Check { operation: "linear", tolerance: 1e-5, products: true, run: linear },
    Check { operation: "linear_backward", tolerance: 1e-5, products: true, run: linear_backward },
    Check { operation: "linear_weight_backward", tolerance: 1e-5, products: true, run: linear_weight_backward },
    Check { operation: "dora_norm", tolerance: 1e-5, products: true, run: dora_norm },
];

const LINEARS: [(usize, usize, usize); 4] = [(1, 64, 48), (5, 3, 7), (33, 43, 65), (40, 320, 130)];

/// The weight in each type it can be kept in.
fn weights(ops: &Device, shape: [usize; 2], values: &[f32]) -> Result<Vec<Weight>> {
    Ok(vec![
        Weight::Dense(ops.upload(&shape, values)?),
        Weight::Dense(ops.upload_bf16(&shape, values)?),
        ops.upload_nf4(&shape, values, false)?,
        ops.upload_nf4(&shape, values, true)?,
    ])
}

fn linear(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, inputs, outputs) in LINEARS {
        let (x, w) = (random(1, n * inputs), random(2, outputs * inputs));
        let xt = ops.upload(&[n, inputs], &x)?;
        for weight in weights(ops, [outputs, inputs], &w)? {
            let values = ops.read_weight(&weight)?;
            let want = reference::forward(&x, &values, n, inputs, outputs);
            pairs.push((ops.read(&ops.linear(&xt, &weight)?)?, want));
        }
    }
    Ok(pairs)
}

fn linear_backward(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, inputs, outputs) in LINEARS {
        let (dy, w, before) = (random(1, n * outputs), random(2, outputs * inputs), random(3, n * inputs));
        let dyt = ops.upload(&[n, outputs], &dy)?;
        for weight in weights(ops, [outputs, inputs], &w)? {
            let values = ops.read_weight(&weight)?;
            let want = reference::backward(&dy, &values, n, inputs, outputs);
            let into = Some(ops.upload(&[n, inputs], &before)?);
            pairs.push((ops.read(&ops.linear_backward(&dyt, &weight, into)?)?, plus(&before, &want)));
            pairs.push((ops.read(&ops.linear_backward(&dyt, &weight, None)?)?, want));
        }
    }
    Ok(pairs)
}

fn linear_weight_backward(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, inputs, outputs) in [(1, 3, 2), (65, 576, 16), (100, 33, 130)] {
        let (x, dy, before) = (random(1, n * inputs), random(2, n * outputs), random(3, outputs * inputs));
        let mut dw = ops.upload(&[outputs, inputs], &before)?;
        ops.linear_weight_backward(&ops.upload(&[n, outputs], &dy)?, &ops.upload(&[n, inputs], &x)?, &mut dw)?;
        let want = reference::weight_backward(&dy, &x, n, inputs, outputs);
        pairs.push((ops.read(&dw)?, plus(&before, &want)));
    }
    Ok(pairs)
}

fn dora_norm(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (inputs, outputs, rank) in [(64, 48, 4), (43, 65, 1)] {
        let (w, a, b) = (random(1, outputs * inputs), random(2, rank * inputs), random(3, outputs * rank));
        let (at, bt) = (ops.upload(&[rank, inputs], &a)?, ops.upload(&[outputs, rank], &b)?);
        for weight in weights(ops, [outputs, inputs], &w)? {
            let mut sum = ops.read_weight(&weight)?;
            let low = matmul::reference::matmul(&b, &a, outputs, rank, inputs);
            sum.iter_mut().zip(&low).for_each(|(w, low)| *w += 0.5 * low);
            let norm = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32;
            let want = sum.chunks_exact(inputs).map(norm).collect();
            pairs.push((ops.read(&ops.dora_norm(&weight, &at, &bt, 0.5)?)?, want));
        }
    }
    Ok(pairs)
}
