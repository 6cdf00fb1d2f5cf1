//! Checks of this operation against its plain reference.

use super::reference;
use crate::error::Result;
use crate::ops::check::{Check, Pairs, random};
use crate::ops::{Activation, Device};

pub(crate) const CHECKS: &[Check] = &[
    Check { operation: "gated", tolerance: 1e-5, products: false, run: gated },
    Check { operation: "gated_backward", tolerance: 1e-5, products: false, run: gated_backward },
    Check { operation: "activation", tolerance: 1e-5, products: false, run: activation },
];

const KINDS: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::Gelu];

/// Values of some units, and far ones that must not overflow.
fn gates(n: usize) -> Vec<f32> {
    let mut x: Vec<f32> = random(1, n).iter().map(|x| 6.0 * x).collect();
    for (place, far) in [(1, 90.0), (3, -90.0), (5, 0.0), (7, 1e4), (9, -1e4)] {
        if place < n {
            x[place] = far;
        }
    }
    x
}

fn gated(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for kind in KINDS {
        for n in [10, 1000] {
            let (gate, up) = (gates(n), random(2, n));
            let got = ops.gated(&ops.upload(&[1, n], &gate)?, &ops.upload(&[1, n], &up)?, kind)?;
            pairs.push((ops.read(&got)?, reference::gated(&gate, &up, kind)));
        }
    }
    Ok(pairs)
}

fn gated_backward(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for kind in KINDS {
        // Moderate values, so that the far ones do not hide them.
        let n = 1000;
        let (gate, up, dy) = (random(1, n).iter().map(|x| 6.0 * x).collect::<Vec<_>>(), random(2, n), random(3, n));
        let (dgate, dup) = ops.gated_backward(
            &ops.upload(&[1, n], &dy)?,
            &ops.upload(&[1, n], &gate)?,
            &ops.upload(&[1, n], &up)?,
            kind,
        )?;
        let want = reference::gated_backward(&dy, &gate, &up, kind);
        pairs.extend([(ops.read(&dgate)?, want.0), (ops.read(&dup)?, want.1)]);
    }
    Ok(pairs)
}

fn activation(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for kind in KINDS {
        let (x, dy) = (gates(500), random(2, 500));
        let t = ops.upload(&[5, 100], &x)?;
        let both: (Vec<f32>, Vec<f32>) = x.iter().map(|x| reference::activation(*x, kind)).unzip();
        pairs.push((ops.read(&ops.activation(&t, kind)?)?, both.0));
        let want = both.1.iter().zip(&dy).map(|(slope, dy)| slope * dy).collect();
        pairs.push((ops.read(&ops.activation_backward(&ops.upload(&[5, 100], &dy)?, &t, kind)?)?, want));
    }
    Ok(pairs)
}
