//! What a check of an operation is, and what it finds.
//!
//! The checks themselves are in the operations' folders (`ops/<op>/conformance.rs`);
//! [`super::CHECKS`] lists them.

use super::Device;
use crate::error::Result;
use crate::random::Key;

/// What a check compares: pairs of what the device gave and what the reference
/// says.
pub(crate) type Pairs = Vec<(Vec<f32>, Vec<f32>)>;

/// A check of one operation. It is written in the operation's folder, and cannot be
/// written without a tolerance.
pub struct Check {
    /// The operation's name, as `finetune device test` prints it.
    pub operation: &'static str,
    /// How far the operation may be from its reference:
    /// |got − want| ≤ tolerance · (|want| + rms(want)).
    ///
    /// A device sums in f32 in another order than the reference, and its exponentials
    /// are good to some units in the last place: sums of n terms differ by about
    /// √n · 6e-8.
    pub(crate) tolerance: f64,
    /// Whether the operation is made of matrix products. Tensor cores round the
    /// operands of these, and the check allows what that costs.
    pub(crate) products: bool,
    pub(crate) run: fn(&Device) -> Result<Pairs>,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The operation's name.
    pub operation: &'static str,
    /// The largest |got − want| / (|want| + rms(want)).
    pub worst: f64,
    /// What the device is allowed.
    pub tolerance: f64,
    /// Why the operation gave nothing to compare.
    pub error: Option<String>,
    /// Whether the same call gave the same bits twice.
    pub repeatable: bool,
}

impl Finding {
    /// Whether the device computes the operation as its reference does, twice the same.
    pub fn passed(&self) -> bool {
        self.error.is_none() && self.worst <= self.tolerance && self.repeatable
    }
}

impl Check {
    /// Runs on a device, twice.
    pub fn run(&self, device: &Device) -> Finding {
        // A sum of rounded products is off by a few roundings at most.
        let rounding = if self.products { 4.0 * device.info().product_rounding } else { 0.0 };
        let tolerance = self.tolerance.max(rounding);
        let mut finding = Finding { operation: self.operation, worst: 0.0, tolerance, error: None, repeatable: true };
        match (self.run)(device).and_then(|first| Ok((first, (self.run)(device)?))) {
            Ok((first, second)) => {
                for ((got, want), (again, _)) in first.iter().zip(&second) {
                    finding.worst = finding.worst.max(distance(got, want));
                    finding.repeatable &= got.iter().zip(again).all(|(a, b)| a.to_bits() == b.to_bits());
                }
                // NaN is further than any tolerance.
                if finding.worst.is_nan() {
                    finding.worst = f64::INFINITY;
                }
            }
            Err(error) => finding.error = Some(error.to_string()),
        }
        finding
    }
}

/// The largest relative distance; infinite if the lengths differ or one side
/// alone is NaN.
pub(crate) fn distance(got: &[f32], want: &[f32]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    let finite = |x: &&f32| x.is_finite();
    let squares: f64 = want.iter().filter(finite).map(|w| f64::from(*w) * f64::from(*w)).sum();
    let rms = (squares / want.len().max(1) as f64).sqrt();
    let each = got.iter().zip(want).map(|(got, want)| {
        if got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()) {
            return 0.0;
        }
        let distance = (f64::from(*got) - f64::from(*want)).abs() / (f64::from(want.abs()) + rms + 1e-30);
        if distance.is_nan() { f64::INFINITY } else { distance }
    });
    each.fold(0.0, f64::max)
}

/// Uniform numbers in [−1, 1), from the stream of this place.
pub(crate) fn random(place: u32, len: usize) -> Vec<f32> {
    Key::new(11, 0, place).uniform_vec(len, -1.0, 1.0)
}

pub(crate) fn plus(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// Indices of which some repeat.
pub(crate) fn some_indices(n: usize, rows: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 7 % 5 * 3 % rows) as u32).collect()
}
