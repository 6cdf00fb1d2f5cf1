//! The definition, in plain loops.

/// y and 1/rms of each group.
pub fn forward(x: &[f32], w: &[f32], epsilon: f32, offset: f32) -> (Vec<f32>, Vec<f32>) {
    let mut y = Vec::with_capacity(x.len());
    let mut statistics = Vec::new();
    for x in x.chunks_exact(w.len()) {
        let squares: f64 = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        let rstd = 1.0 / ((squares / w.len() as f64) as f32 + epsilon).sqrt();
        y.extend(x.iter().zip(w).map(|(x, w)| x * rstd * (w + offset)));
        statistics.push(rstd);
    }
    (y, statistics)
}

/// dx and dw.
pub fn backward(dy: &[f32], x: &[f32], w: &[f32], rstd: &[f32], offset: f32) -> (Vec<f32>, Vec<f32>) {
    let n = w.len();
    let mut dx = Vec::with_capacity(x.len());
    let mut dw = vec![0.0; n];
    for (group, rstd) in rstd.iter().enumerate() {
        let (dy, x) = (&dy[group * n..][..n], &x[group * n..][..n]);
        let g: Vec<f32> = dy.iter().zip(w).map(|(dy, w)| dy * (w + offset)).collect();
        let mean = g.iter().zip(x).map(|(g, x)| f64::from(*g) * f64::from(*x)).sum::<f64>() as f32 / n as f32;
        for i in 0..n {
            dx.push(rstd * (g[i] - x[i] * rstd * rstd * mean));
            dw[i] += dy[i] * x[i] * rstd;
        }
    }
    (dx, dw)
}
