//! How fast a device multiplies matrices.

use std::time::Instant;

use finetuned_shaders::random::Key;
use finetuned_shaders::{Device, Weight, WeightKind};

use crate::error::EngineError;

/// The largest factor by which the product of [`matrix_rate`] grows in every dimension.
const LARGEST: usize = 8;

/// A product this long, in seconds, is bound by arithmetic and not by its launch.
const LONG: f64 = 0.01;

/// Floating-point operations per second of a product of 512 by 1024 by 1024.
///
/// # Errors
/// No memory for the operands.
pub fn matrix_rate(ops: &Device) -> Result<f64, EngineError> {
    Ok(rate(ops, 1)?.per_second)
}

/// Floating-point operations per second of the largest product that is worth its time:
/// a card finishes a small one before its next launch is ready.
///
/// # Errors
/// No memory for the operands of the smallest.
pub fn matrix_peak(ops: &Device) -> Result<f64, EngineError> {
    let mut best = rate(ops, 1)?;
    let mut factor = 2;
    while best.seconds < LONG && factor <= LARGEST {
        // A device without memory for a larger product keeps what it has shown.
        let Ok(next) = rate(ops, factor) else { break };
        best = Rate { seconds: next.seconds, per_second: best.per_second.max(next.per_second) };
        factor *= 2;
    }
    Ok(best.per_second)
}

struct Rate {
    /// The shortest of the products.
    seconds: f64,
    per_second: f64,
}

fn rate(ops: &Device, factor: usize) -> Result<Rate, EngineError> {
    let (m, k, n) = (512 * factor, 1024 * factor, 1024 * factor);
    // Numbers as a model has: a card draws less power on zeros, and is faster.
    let numbers = |shape: [usize; 2], stream| {
        let kind = WeightKind::F32;
        match ops.random_weight(&shape, 1.0, Key::new(1, stream, 0), kind)? {
            Weight::Dense(tensor) => Ok(tensor),
            Weight::Nf4(_) => ops.zeros(&shape),
        }
    };
    let (a, b) = (numbers([m, k], 0)?, numbers([n, k], 1)?);
    let mut best = f64::INFINITY;
    for number in 0..4 {
        let started = Instant::now();
        let c = ops.matmul(&a, false, &b, true, 1.0, None)?;
        // A device that computes behind our back must be waited for.
        ops.synchronize()?;
        drop(c);
        best = best.min(started.elapsed().as_secs_f64());
        // The first product also compiles its kernel; the second of a slow
        // device tells enough.
        if number > 0 && best > 0.2 {
            break;
        }
    }
    Ok(Rate { seconds: best, per_second: 2.0 * (m * k * n) as f64 / best })
}
