//! Checks of this operation against its plain reference.

use super::reference;
use crate::error::Result;
use crate::ops::Device;
use crate::ops::check::{Check, Pairs, random};
use crate::random::Key;

pub(crate) const CHECKS: &[Check] = &[Check { operation: "dropout", tolerance: 1e-7, products: false, run: dropout }];

fn dropout(ops: &Device) -> Result<Pairs> {
    let key = Key::new(0x1234_5678_9abc_def0, 7, 42);
    let mut pairs = Vec::new();
    for n in [1, 6, 10_001] {
        let x = random(1, n);
        let got = ops.read(&ops.dropout(&ops.upload(&[n], &x)?, 0.3, key)?)?;
        pairs.push((got, reference::dropout(&x, 0.3, key)));
    }
    Ok(pairs)
}
