//! Checks of this operation against its plain reference.

use super::reference;
use crate::error::Result;
use crate::ops::check::{Check, Pairs, random};
use crate::ops::{Device, RotaryTable};

pub(crate) const CHECKS: &[Check] = &[Check { operation: "rotary", tolerance: 1e-6, products: false, run: rotary }];

fn rotary(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, heads, dim, rotary_dim) in [(1, 1, 2, 2), (33, 9, 64, 64), (5, 2, 256, 256), (9, 2, 96, 24)] {
        let half = rotary_dim / 2;
        let angle = |at: usize| (at / half) as f32 * 10_000f32.powf(-((at % half) as f32) / half as f32);
        let (cos, sin): (Vec<f32>, Vec<f32>) = (0..40 * half).map(|at| (angle(at).cos(), angle(at).sin())).unzip();
        let table =
            RotaryTable { cos: ops.upload(&[40, half], &cos)?, sin: ops.upload(&[40, half], &sin)?, rotary_dim };
        let x = random(1, n * heads * dim);
        let positions: Vec<u32> = (0..n as u32).map(|i| i * 5 % 40).collect();
        let mut t = ops.upload(&[n, heads * dim], &x)?;
        ops.rotary(&mut t, &positions, &table, dim, false)?;
        let mut want = x.clone();
        reference::rotary(&mut want, &positions, &cos, &sin, rotary_dim, dim, false);
        pairs.push((ops.read(&t)?, want));
        ops.rotary(&mut t, &positions, &table, dim, true)?;
        pairs.push((ops.read(&t)?, x));
    }
    Ok(pairs)
}
