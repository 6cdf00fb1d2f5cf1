//! The definition, in plain loops.

/// Turns x `[N, heads·D]`; cos and sin `[max_positions, rotary_dim/2]`.
pub fn rotary(
    x: &mut [f32],
    positions: &[u32],
    cos: &[f32],
    sin: &[f32],
    rotary_dim: usize,
    head_dim: usize,
    inverse: bool,
) {
    let half = rotary_dim / 2;
    let columns = x.len() / positions.len();
    for (row, position) in positions.iter().enumerate() {
        for head in x[row * columns..][..columns].chunks_exact_mut(head_dim) {
            for i in 0..half {
                let (c, s) = (cos[*position as usize * half + i], sin[*position as usize * half + i]);
                let s = if inverse { -s } else { s };
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * c - b * s;
                head[i + half] = b * c + a * s;
            }
        }
    }
}
