//! Checks of this operation against its plain reference.

use super::reference;
use crate::error::Result;
use crate::ops::Device;
use crate::ops::check::{Check, Pairs, plus, random};

pub(crate) const CHECKS: &[Check] = &[Check { operation: "columns", tolerance: 1e-5, products: false, run: columns }];

fn columns(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, c) in [(1, 7), (130, 33), (5000, 48)] {
        let (x, y, v) = (random(1, n * c), random(2, n * c), random(3, c));
        let (mut xt, yt, vt) = (ops.upload(&[n, c], &x)?, ops.upload(&[n, c], &y)?, ops.upload(&[c], &v)?);
        pairs.push((ops.read(&ops.scale_columns(&xt, &vt)?)?, reference::scale_columns(&x, &v)));
        let factors = random(5, n);
        let mut scaled = ops.copy(&yt)?;
        ops.scale_rows(&mut scaled, &factors)?;
        pairs.push((ops.read(&scaled)?, y.iter().enumerate().map(|(i, y)| y * factors[i / c]).collect()));
        let mut sums = ops.upload(&[c], &v)?;
        ops.bias_backward(&xt, &mut sums)?;
        pairs.push((ops.read(&sums)?, plus(&v, &reference::column_sums(&x, c))));
        let mut dots = ops.upload(&[c], &v)?;
        ops.column_dot(&xt, &yt, &mut dots)?;
        pairs.push((ops.read(&dots)?, plus(&v, &reference::column_dot(&x, &y, c))));
        ops.add_bias(&mut xt, &vt)?;
        let mut want = x.clone();
        reference::add_bias(&mut want, &v);
        pairs.push((ops.read(&xt)?, want.clone()));
        let parts = ops.split_columns(&xt, &[1, c - 3, 2])?;
        let row = |from: usize, to: usize| want.chunks(c).flat_map(|row| row[from..to].to_vec()).collect::<Vec<f32>>();
        for (part, (from, to)) in parts.iter().zip([(0, 1), (1, c - 2), (c - 2, c)]) {
            pairs.push((ops.read(part)?, row(from, to)));
        }
        pairs.push((ops.read(&ops.join_columns(&[&parts[0], &parts[1], &parts[2]])?)?, want));
    }
    Ok(pairs)
}
