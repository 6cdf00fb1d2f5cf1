//! The definition, in plain loops.

/// Σ x², in f64.
pub fn sum_squares(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()
}
