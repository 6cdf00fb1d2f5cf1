//! How fast a device multiplies matrices.

use std::time::Instant;

use finetuned_shaders::Device;

use crate::error::EngineError;

/// Floating-point operations a second of a matrix product on this device.
///
/// # Errors
/// No memory for the operands.
pub fn matrix_rate(ops: &Device) -> Result<f64, EngineError> {
    let (m, k, n) = (512, 1024, 1024);
    let a = ops.zeros(&[m, k])?;
    let b = ops.zeros(&[n, k])?;
    let mut best = f64::INFINITY;
    for number in 0..4 {
        let started = Instant::now();
        let c = ops.matmul(&a, false, &b, true, 1.0, None)?;
        // A device that computes behind our back must be waited for.
        ops.sum_squares(&[&c])?;
        best = best.min(started.elapsed().as_secs_f64());
        // The first product also compiles its kernel; the second of a slow
        // device tells enough.
        if number > 0 && best > 0.2 {
            break;
        }
    }
    Ok(2.0 * (m * k * n) as f64 / best)
}
