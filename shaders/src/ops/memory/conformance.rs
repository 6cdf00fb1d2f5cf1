//! Checks of memory: what is written is read back.

use crate::error::Result;
use crate::ops::Device;
use crate::ops::check::{Check, Pairs, random};

pub(crate) const CHECKS: &[Check] = &[Check { operation: "memory", tolerance: 0.0, products: false, run: memory }];

fn memory(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for n in [1, 5, 1001] {
        let x = random(1, n);
        let t = ops.upload(&[n], &x)?;
        let mut copy = ops.copy(&t)?;
        pairs.push((ops.read(&copy)?, x.clone()));
        let other = random(2, n);
        ops.write(&mut copy, &other)?;
        pairs.push((ops.read(&copy)?, other));
        pairs.push((ops.read(&t)?, x.clone()));
        pairs.push((ops.read_later(&t)?()?, x.clone()));
        pairs.push((ops.read(&ops.zeros(&[n, 2])?)?, vec![0.0; 2 * n]));
        let halves = ops.upload_bf16(&[n], &x)?;
        pairs.push((ops.read(&ops.copy(&halves)?)?, x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect()));
    }
    Ok(pairs)
}
