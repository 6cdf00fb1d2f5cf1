//! Checks of this operation against its plain reference.

use super::reference;
use crate::error::Result;
use crate::ops::Device;
use crate::ops::check::{Check, Pairs, plus, random};

pub(crate) const CHECKS: &[Check] = &[
    Check { operation: "layer_norm", tolerance: 1e-5, products: false, run: layer_norm },
    Check { operation: "layer_norm_backward", tolerance: 2e-5, products: false, run: layer_norm_backward },
];

fn layer_norm(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, c) in [(1, 2), (37, 577), (5, 48)] {
        let (x, w, b) = (random(1, n * c), random(3, c), random(4, c));
        let (y, both) =
            ops.layer_norm(&ops.upload(&[n, c], &x)?, &ops.upload(&[c], &w)?, &ops.upload(&[c], &b)?, 1e-5)?;
        let want = reference::forward(&x, &w, &b, 1e-5);
        pairs.extend([(ops.read(&y)?, want.0), (ops.read(&both)?, want.1)]);
    }
    Ok(pairs)
}

fn layer_norm_backward(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, c) in [(1, 3), (37, 577), (130, 48)] {
        let (x, dy, w, before) = (random(1, n * c), random(2, n * c), random(3, c), random(4, n * c));
        let (_, both) = reference::forward(&x, &w, &w, 1e-5);
        let (xt, dyt, wt) = (ops.upload(&[n, c], &x)?, ops.upload(&[n, c], &dy)?, ops.upload(&[c], &w)?);
        let bt = ops.upload(&[n, 2], &both)?;
        let (mut dw, mut db) = (ops.upload(&[c], &w)?, ops.zeros(&[c])?);
        let into = Some(ops.upload(&[n, c], &before)?);
        let dx = ops.layer_norm_backward(&dyt, &xt, &wt, &bt, into, Some((&mut dw, &mut db)))?;
        let want = reference::backward(&dy, &x, &w, &both);
        pairs.push((ops.read(&dx)?, plus(&before, &want.0)));
        pairs.push((ops.read(&dw)?, plus(&w, &want.1)));
        pairs.push((ops.read(&db)?, want.2));
    }
    Ok(pairs)
}
