//! Random numbers as a pure function of (seed, step, place): Philox 4x32-10
//! (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//! There is no generator state, so there is none to lose when a run resumes.

/// What a stream of random numbers is for: the same key gives the same numbers
/// on every device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub seed: u64,
    /// Optimizer step (or epoch, or 0 at initialisation).
    pub step: u32,
    /// Where in the model or the program the numbers are used.
    pub place: u32,
}

impl Key {
    pub fn new(seed: u64, step: u32, place: u32) -> Key {
        Key { seed, step, place }
    }

    /// Four words: number `block` of the key's stream.
    pub fn block(&self, block: u64) -> [u32; 4] {
        philox(
            [block as u32, (block >> 32) as u32, self.step, self.place],
            [self.seed as u32, (self.seed >> 32) as u32],
        )
    }

    /// Word `index` of the stream.
    pub fn word(&self, index: u64) -> u32 {
        self.block(index / 4)[(index % 4) as usize]
    }

    /// Uniform in [0, 1), with 24 bits.
    pub fn uniform(&self, index: u64) -> f32 {
        unit(self.word(index))
    }

    /// Uniform in [low, high), one number per element.
    pub fn uniform_vec(&self, len: usize, low: f32, high: f32) -> Vec<f32> {
        (0..len.div_ceil(4) as u64)
            .flat_map(|block| self.block(block))
            .take(len)
            .map(|word| low + (high - low) * unit(word))
            .collect()
    }

    /// Uniform in [−scale, scale), one number per element.
    pub fn symmetric_vec(&self, len: usize, scale: f32) -> Vec<f32> {
        (0..len.div_ceil(4) as u64)
            .flat_map(|block| self.block(block))
            .take(len)
            .map(|word| scale * signed_unit(word))
            .collect()
    }

    /// Standard normal numbers by Box and Muller, times `std`.
    pub fn normal_vec(&self, len: usize, std: f32) -> Vec<f32> {
        (0..len.div_ceil(4) as u64)
            .flat_map(|block| {
                let w = self.block(block);
                let pair = |a: u32, b: u32| {
                    let radius =
                        (-2.0 * (f64::from(a) + 1.0).ln() + 2.0 * 32.0 * std::f64::consts::LN_2).max(0.0).sqrt();
                    let angle = f64::from(b) * (std::f64::consts::TAU / 4_294_967_296.0);
                    [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
                };
                let [a, b] = pair(w[0], w[1]);
                let [c, d] = pair(w[2], w[3]);
                [a, b, c, d]
            })
            .take(len)
            .map(|x| x * std)
            .collect()
    }
}

/// 24 bits of a word as a number in [0, 1).
pub fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// 24 bits of a word as a number in [−1, 1), exactly: a product with it is rounded
/// once, and alike on every device.
pub fn signed_unit(word: u32) -> f32 {
    ((word >> 8) as i32 - (1 << 23)) as f32 * (1.0 / 8_388_608.0)
}

/// Philox 4x32 with ten rounds.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut c = counter;
    let mut k = key;
    for _ in 0..10 {
        let a = u64::from(c[0]) * 0xD251_1F53;
        let b = u64::from(c[2]) * 0xCD9E_8D57;
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_matches_the_published_vectors() {
        // Random123's kat_vectors for philox4x32-10.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_unit_variance() {
        let x = Key::new(7, 0, 1).normal_vec(100_000, 1.0);
        let mean: f64 = x.iter().map(|v| f64::from(*v)).sum::<f64>() / 1e5;
        let variance: f64 = x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "mean {mean}, variance {variance}");
    }
}
