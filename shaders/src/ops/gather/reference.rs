//! The definition, in plain loops.

/// Rows of x `[N, C]` at `indices`.
pub fn gather_rows(x: &[f32], columns: usize, indices: &[u32]) -> Vec<f32> {
    indices.iter().flat_map(|index| x[*index as usize * columns..][..columns].to_vec()).collect()
}

/// `rows` rows of zeros, plus dy's rows at `indices`.
pub fn scatter_rows(rows: usize, columns: usize, indices: &[u32], dy: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; rows * columns];
    for (row, index) in indices.iter().enumerate() {
        for c in 0..columns {
            out[*index as usize * columns + c] += dy[row * columns + c];
        }
    }
    out
}
