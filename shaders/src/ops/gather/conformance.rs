//! Checks of this operation against its plain reference.

use super::reference;
use crate::error::Result;
use crate::ops::Device;
use crate::ops::check::{Check, Pairs, random, some_indices};

pub(crate) const CHECKS: &[Check] =
    &[Check { operation: "gather_rows", tolerance: 1e-6, products: false, run: gather }];

fn gather(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, rows, c) in [(1, 1, 3), (40, 17, 65), (9, 300, 576)] {
        let (x, dy) = (random(1, rows * c), random(2, n * c));
        let indices = some_indices(n, rows);
        let xt = ops.upload(&[rows, c], &x)?;
        let dyt = ops.upload(&[n, c], &dy)?;
        pairs.push((ops.read(&ops.gather_rows(&xt, &indices)?)?, reference::gather_rows(&x, c, &indices)));
        let want = reference::scatter_rows(rows, c, &indices, &dy);
        pairs.push((ops.read(&ops.scatter_rows(rows, &indices, &dyt)?)?, want));
        let mut cache = ops.zeros(&[rows + n, c])?;
        ops.write_rows(&mut cache, rows, &dyt)?;
        pairs.push((ops.read(&cache)?, [vec![0.0; rows * c], dy].concat()));
    }
    Ok(pairs)
}
