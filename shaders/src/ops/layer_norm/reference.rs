//! The definition, in plain loops.

/// y and (mean, rstd) of each row.
pub fn forward(x: &[f32], w: &[f32], b: &[f32], epsilon: f32) -> (Vec<f32>, Vec<f32>) {
    let n = w.len();
    let mut y = Vec::with_capacity(x.len());
    let mut statistics = Vec::new();
    for x in x.chunks_exact(n) {
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64;
        let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n as f64;
        let (mean, rstd) = (mean as f32, 1.0 / (variance as f32 + epsilon).sqrt());
        y.extend((0..n).map(|i| (x[i] - mean) * rstd * w[i] + b[i]));
        statistics.extend([mean, rstd]);
    }
    (y, statistics)
}

/// dx, dw and db.
pub fn backward(dy: &[f32], x: &[f32], w: &[f32], statistics: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let n = w.len();
    let mut dx = Vec::with_capacity(x.len());
    let (mut dw, mut db) = (vec![0.0; n], vec![0.0; n]);
    for (row, s) in statistics.chunks_exact(2).enumerate() {
        let (dy, x) = (&dy[row * n..][..n], &x[row * n..][..n]);
        let norm: Vec<f32> = x.iter().map(|x| (x - s[0]) * s[1]).collect();
        let g: Vec<f32> = dy.iter().zip(w).map(|(dy, w)| dy * w).collect();
        let mean_g = g.iter().map(|g| f64::from(*g)).sum::<f64>() as f32 / n as f32;
        let mean_gn = g.iter().zip(&norm).map(|(g, n)| f64::from(*g) * f64::from(*n)).sum::<f64>() as f32 / n as f32;
        for i in 0..n {
            dx.push(s[1] * (g[i] - mean_g - norm[i] * mean_gn));
            dw[i] += dy[i] * norm[i];
            db[i] += dy[i];
        }
    }
    (dx, dw, db)
}
