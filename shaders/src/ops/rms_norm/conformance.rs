//! Checks of this operation against its plain reference.

use super::reference;
use crate::error::Result;
use crate::ops::Device;
use crate::ops::check::{Check, Pairs, plus, random};

pub(crate) const CHECKS: &[Check] = &[
    Check { operation: "rms_norm", tolerance: 5e-6, products: false, run: rms_norm },
    Check { operation: "rms_norm_backward", tolerance: 1e-5, products: false, run: rms_norm_backward },
];

/// Tokens, columns and the norm's group.
const NORMS: [(usize, usize, usize); 5] = [(1, 2, 2), (1, 576, 576), (37, 577, 577), (100, 576, 64), (3, 512, 256)];

fn rms_norm(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, c, group) in NORMS {
        let (x, w) = (random(1, n * c), random(3, group));
        let (y, rstd) = ops.rms_norm(&ops.upload(&[n, c], &x)?, &ops.upload(&[group], &w)?, 1e-5, 1.0)?;
        let want = reference::forward(&x, &w, 1e-5, 1.0);
        pairs.extend([(ops.read(&y)?, want.0), (ops.read(&rstd)?, want.1)]);
    }
    Ok(pairs)
}

fn rms_norm_backward(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, c, group) in NORMS {
        let (x, dy, w, before) = (random(1, n * c), random(2, n * c), random(3, group), random(4, n * c));
        let (_, rstd) = reference::forward(&x, &w, 1e-5, 0.0);
        let (xt, dyt, wt) = (ops.upload(&[n, c], &x)?, ops.upload(&[n, c], &dy)?, ops.upload(&[group], &w)?);
        let rt = ops.upload(&[rstd.len()], &rstd)?;
        let mut dw = ops.upload(&[group], &w)?;
        let dx = ops.rms_norm_backward(&dyt, &xt, &wt, &rt, 0.0, None, Some(&mut dw))?;
        let into = Some(ops.upload(&[n, c], &before)?);
        let added = ops.rms_norm_backward(&dyt, &xt, &wt, &rt, 0.0, into, None)?;
        let want = reference::backward(&dy, &x, &w, &rstd, 0.0);
        pairs.push((ops.read(&dw)?, plus(&w, &want.1)));
        pairs.push((ops.read(&added)?, plus(&before, &want.0)));
        pairs.push((ops.read(&dx)?, want.0));
    }
    Ok(pairs)
}
