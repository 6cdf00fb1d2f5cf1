//! The definition, in plain loops.

pub fn forward(ids: &[u32], table: &[f32], columns: usize, scale: f32) -> Vec<f32> {
    ids.iter().flat_map(|id| table[*id as usize * columns..][..columns].iter().map(|x| x * scale)).collect()
}

/// dtable[id] += scale · dy.
pub fn backward(ids: &[u32], dy: &[f32], columns: usize, scale: f32, dtable: &mut [f32]) {
    for (row, id) in ids.iter().enumerate() {
        for c in 0..columns {
            dtable[*id as usize * columns + c] += scale * dy[row * columns + c];
        }
    }
}
