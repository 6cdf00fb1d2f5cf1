//! Checks of this operation against its plain reference.

use super::reference;
use crate::error::Result;
use crate::ops::check::{Check, Pairs};
use crate::ops::{Device, WeightKind};
use crate::random::Key;

pub(crate) const CHECKS: &[Check] =
    &[Check { operation: "random_weight", tolerance: 0.0, products: false, run: random_weight }];

fn random_weight(ops: &Device) -> Result<Pairs> {
    let key = Key::new(0x1234_5678_9abc_def0, 7, 42);
    let mut pairs = Vec::new();
    for shape in [[1, 1], [3, 7], [33, 130]] {
        let x = reference::uniform(shape[0] * shape[1], 0.035, key);
        for kind in [WeightKind::F32, WeightKind::Bf16] {
            let got = ops.read_weight(&ops.random_weight(&shape, 0.035, key, kind)?)?;
            let round = |x: &f32| if kind == WeightKind::Bf16 { half::bf16::from_f32(*x).to_f32() } else { *x };
            pairs.push((got, x.iter().map(round).collect()));
        }
        for double_quant in [false, true] {
            let got = ops.random_weight(&shape, 0.035, key, WeightKind::Nf4 { double_quant })?;
            let want = ops.upload_nf4(&shape, &x, double_quant)?;
            pairs.push((ops.read_weight(&got)?, ops.read_weight(&want)?));
        }
    }
    Ok(pairs)
}
