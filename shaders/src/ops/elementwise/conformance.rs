//! Checks of this operation against its plain reference.

use super::reference;
use crate::error::Result;
use crate::ops::Device;
use crate::ops::check::{Check, Pairs, random};

pub(crate) const CHECKS: &[Check] = &[
    Check { operation: "add_scaled", tolerance: 2e-7, products: false, run: add_scaled },
    // WGSL and Vulkan allow a division 2.5 units in the last place.
    Check { operation: "divide", tolerance: 3e-7, products: false, run: divide },
];

fn add_scaled(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for n in [1, 255, 257, 70_001] {
        let (a, b) = (random(1, n), random(2, n));
        let (mut at, bt) = (ops.upload(&[n], &a)?, ops.upload(&[n], &b)?);
        pairs.push((ops.read(&ops.add(&at, &bt)?)?, reference::add(&a, &b)));
        ops.add_scaled(&mut at, &bt, -0.5)?;
        let mut want = a.clone();
        reference::add_scaled(&mut want, &b, -0.5);
        pairs.push((ops.read(&at)?, want.clone()));
        ops.scale(&mut at, 3.0)?;
        pairs.push((ops.read(&at)?, want.iter().map(|x| 3.0 * x).collect()));
        ops.fill_zero(&mut at)?;
        pairs.push((ops.read(&at)?, vec![0.0; n]));
    }
    Ok(pairs)
}

fn divide(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for n in [1, 255, 70_001] {
        let a = random(1, n);
        // Divisors as norms are: positive, from a thousandth to a thousand.
        let b: Vec<f32> = random(2, n).iter().map(|x| 10f32.powf(3.0 * x)).collect();
        let got = ops.divide(&ops.upload(&[n], &a)?, &ops.upload(&[n], &b)?)?;
        pairs.push((ops.read(&got)?, reference::divide(&a, &b)));
    }
    Ok(pairs)
}
