//! The definition, in plain loops.

/// a `[rows, depth]` times b `[depth, columns]`, summed in f64.
pub fn matmul(a: &[f32], b: &[f32], rows: usize, depth: usize, columns: usize) -> Vec<f32> {
    let mut c = Vec::with_capacity(rows * columns);
    for i in 0..rows {
        for j in 0..columns {
            let sum: f64 = (0..depth).map(|k| f64::from(a[i * depth + k]) * f64::from(b[k * columns + j])).sum();
            c.push(sum as f32);
        }
    }
    c
}

/// The transpose of x `[rows, columns]`.
pub fn transpose(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|j| (0..rows).map(move |i| x[i * columns + j])).collect()
}
