//! The definition, in plain loops.

/// y += alpha · x.
pub fn add_scaled(y: &mut [f32], x: &[f32], alpha: f32) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += alpha * x;
    }
}

/// a / b.
pub fn divide(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a / b).collect()
}

/// a + b.
pub fn add(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}
