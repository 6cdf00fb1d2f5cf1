//! Checks of this operation against its plain reference.

use crate::error::Result;
use crate::ops::Device;
use crate::ops::check::{Check, Pairs, random};

pub(crate) const CHECKS: &[Check] =
    &[Check { operation: "sum_squares", tolerance: 2e-6, products: false, run: sum_squares }];

fn sum_squares(ops: &Device) -> Result<Pairs> {
    let all: Vec<Vec<f32>> = [1, 100, 4096, 50_001].iter().map(|n| random(*n as u32, *n)).collect();
    let mut tensors = Vec::new();
    for x in &all {
        tensors.push(ops.upload(&[x.len()], x)?);
    }
    let got = ops.sum_squares(&tensors.iter().collect::<Vec<_>>())?;
    let want: f64 = all.iter().flatten().map(|x| f64::from(*x) * f64::from(*x)).sum();
    Ok(vec![(vec![got as f32], vec![want as f32])])
}
