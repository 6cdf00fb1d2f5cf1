//! Checks of this operation against its plain reference.

use super::reference;
use crate::error::Result;
use crate::ops::Device;
use crate::ops::check::{Check, Pairs, plus, random};

pub(crate) const CHECKS: &[Check] = &[Check { operation: "matmul", tolerance: 1e-5, products: true, run: matmul }];

fn matmul(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (m, k, n) in [(1, 1, 1), (1, 576, 64), (33, 43, 65), (128, 128, 128), (70, 16, 577), (16, 300, 7)] {
        let (a, b, before) = (random(1, m * k), random(2, k * n), random(3, m * n));
        let product = reference::matmul(&a, &b, m, k, n);
        for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
            let flip = reference::transpose;
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
