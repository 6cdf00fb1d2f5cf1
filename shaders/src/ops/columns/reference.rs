//! The definition, in plain loops. `columns` is C.

/// y[n, c] += bias[c].
pub fn add_bias(y: &mut [f32], bias: &[f32]) {
    for (i, y) in y.iter_mut().enumerate() {
        *y += bias[i % bias.len()];
    }
}

/// Σ over n of dy[n, c].
pub fn column_sums(dy: &[f32], columns: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; columns];
    for (i, dy) in dy.iter().enumerate() {
        sums[i % columns] += f64::from(*dy);
    }
    sums.iter().map(|s| *s as f32).collect()
}

/// x[n, c] · g[c].
pub fn scale_columns(x: &[f32], g: &[f32]) -> Vec<f32> {
    x.iter().enumerate().map(|(i, x)| x * g[i % g.len()]).collect()
}

/// Σ over n of a[n, c] · b[n, c].
pub fn column_dot(a: &[f32], b: &[f32], columns: usize) -> Vec<f32> {
    let products: Vec<f32> = a.iter().zip(b).map(|(a, b)| a * b).collect();
    column_sums(&products, columns)
}
