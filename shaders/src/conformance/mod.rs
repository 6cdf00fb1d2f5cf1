//! Every operation of a device against its plain reference, on awkward shapes:
//! what decides whether a device and its driver are trusted with a job, and
//! what the tests run on every device they find.
//!
//! Shapes: one token, lengths that no tile divides, a vocabulary of 49153,
//! head sizes from 16 to 256, nine query heads on three key heads.

mod checks;
mod matrices;
mod nf4;
mod optimizer;
mod rows;

use crate::error::Result;
use crate::ops::Ops;
use crate::random::Key;

/// How far an operation may be from its reference:
/// |got − want| ≤ tolerance · (|want| + rms(want)).
///
/// A device sums in f32 in an order of its own, and its exponentials are good
/// to some units in the last place: sums of n terms differ by about √n · 6e-8.
/// Tensor cores round the operands of products: [`PRODUCTS`] are then allowed
/// what that costs.
const TOLERANCES: [(&str, f64); 31] = [
    ("memory", 0.0),
    ("random_weight", 0.0),
    ("nf4_quantise", 0.0),
    ("add_scaled", 2e-7),
    // WGSL and Vulkan allow a division 2.5 units in the last place.
    ("divide", 3e-7),
    ("columns", 1e-5),
    ("sum_squares", 2e-6),
    ("gather_rows", 1e-6),
    ("dropout", 1e-7),
    ("embedding", 1e-6),
    ("embedding_backward", 1e-6),
    ("rms_norm", 5e-6),
    ("rms_norm_backward", 1e-5),
    ("layer_norm", 1e-5),
    ("layer_norm_backward", 2e-5),
    ("matmul", 1e-5),
    ("nf4", 1e-6),
    ("linear", 1e-5),
    ("linear_backward", 1e-5),
    ("linear_weight_backward", 1e-5),
    ("dora_norm", 1e-5),
    ("rotary", 1e-6),
    ("attention", 2e-5),
    ("attention_backward", 1e-4),
    ("attention_cached", 2e-5),
    ("gated", 1e-5),
    ("gated_backward", 1e-5),
    ("activation", 1e-5),
    ("token_logp", 2e-5),
    ("token_logp_backward", 5e-5),
    ("optimizer_step", 2e-5),
];

/// Operations made of matrix products.
const PRODUCTS: [&str; 7] =
    ["matmul", "linear", "linear_backward", "linear_weight_backward", "dora_norm", "token_logp", "token_logp_backward"];

/// What a check compares: pairs of what the device gave and what the reference
/// says.
type Pairs = Vec<(Vec<f32>, Vec<f32>)>;

/// A check of one operation.
pub struct Check {
    /// A name of the table of tolerances.
    pub operation: &'static str,
    run: fn(&dyn Ops) -> Result<Pairs>,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    pub operation: &'static str,
    /// The largest |got − want| / (|want| + rms(want)).
    pub worst: f64,
    pub tolerance: f64,
    /// Why the operation gave nothing to compare.
    pub error: Option<String>,
    /// Whether the same call gave the same bits twice.
    pub repeatable: bool,
}

impl Finding {
    pub fn passed(&self) -> bool {
        self.error.is_none() && self.worst <= self.tolerance && self.repeatable
    }
}

/// All checks, in the order of a step.
pub fn checks() -> Vec<Check> {
    checks::all()
}

impl Check {
    /// Runs on a device, twice.
    pub fn run(&self, device: &dyn Ops) -> Finding {
        let tolerance = TOLERANCES.iter().find(|(name, _)| *name == self.operation).map_or(0.0, |found| found.1);
        // Of a sum of rounded products one is far off by some roundings at most.
        let rounding = if PRODUCTS.contains(&self.operation) { 4.0 * device.info().product_rounding } else { 0.0 };
        let tolerance = tolerance.max(rounding);
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

/// The largest relative distance; infinite where lengths differ or one side
/// alone is no number.
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

/// Uniform numbers in [−1, 1) of a stream of their own.
fn random(place: u32, len: usize) -> Vec<f32> {
    Key::new(11, 0, place).uniform_vec(len, -1.0, 1.0)
}

fn plus(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

#[cfg(test)]
mod tests;
