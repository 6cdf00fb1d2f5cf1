//! Vectorised arithmetic without intrinsics: loops that the compiler turns
//! into vector code, compiled once per instruction set and chosen at run
//! time by `pulp`.
//!
//! Sums run in a fixed number of lanes and products are fused (`mul_add`), so
//! the bits are the same on every instruction set. Functions are
//! `#[inline(always)]` because only what is inlined into [`dispatch`]'s
//! closure is compiled for the chosen set.

/// Runs `work` compiled for the widest vectors this machine has.
///
/// The closure must be marked `#[inline(always)]`: one that is not inlined is
/// compiled for the oldest machine, some fifty times slower.
#[inline(always)]
pub(crate) fn dispatch<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// Lanes of a running sum: four 16-wide registers hide the adder's latency.
pub(crate) const LANES: usize = 64;

/// Elements of one register.
const REGISTER: usize = 16;

/// Combines the lanes pairwise, in an order that never changes.
#[inline(always)]
fn fold(lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = combine(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Takes x in steps of all lanes, then of one register, then one by one.
#[inline(always)]
fn reduce(x: &[f32], start: f32, step: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut lanes = [start; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for x in chunks {
        for i in 0..LANES {
            lanes[i] = step(lanes[i], x[i]);
        }
    }
    let (chunks, rest) = rest.as_chunks::<REGISTER>();
    for x in chunks {
        for i in 0..REGISTER {
            lanes[i] = step(lanes[i], x[i]);
        }
    }
    for (i, x) in rest.iter().enumerate() {
        lanes[i] = step(lanes[i], *x);
    }
    lanes
}

/// Σ x·y.
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, x) = x.as_chunks::<LANES>();
    let (ys, y) = y.as_chunks::<LANES>();
    for (x, y) in xs.iter().zip(ys) {
        for i in 0..LANES {
            lanes[i] = x[i].mul_add(y[i], lanes[i]);
        }
    }
    let (xs, x) = x.as_chunks::<REGISTER>();
    let (ys, y) = y.as_chunks::<REGISTER>();
    for (x, y) in xs.iter().zip(ys) {
        for i in 0..REGISTER {
            lanes[i] = x[i].mul_add(y[i], lanes[i]);
        }
    }
    for (i, (x, y)) in x.iter().zip(y).enumerate() {
        lanes[i] = x.mul_add(*y, lanes[i]);
    }
    fold(lanes, |a, b| a + b)
}

/// Σ x.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    fold(reduce(x, 0.0, |sum, x| sum + x), |a, b| a + b)
}

/// The largest element, −∞ for none. NaN is passed over here; it comes back
/// through the sums that follow a maximum.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    fold(reduce(x, f32::NEG_INFINITY, larger), larger)
}

/// x = e^(x − shift), and the sum of that.
#[inline(always)]
pub(crate) fn exp_in_place(x: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0f32; REGISTER];
    let (chunks, rest) = x.as_chunks_mut::<REGISTER>();
    for x in chunks {
        for i in 0..REGISTER {
            x[i] = exp(x[i] - shift);
            lanes[i] += x[i];
        }
    }
    for (i, x) in rest.iter_mut().enumerate() {
        *x = exp(*x - shift);
        lanes[i] += *x;
    }
    sum(&lanes)
}

/// y += alpha · x.
#[inline(always)]
pub(crate) fn add_scaled(y: &mut [f32], x: &[f32], alpha: f32) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = alpha.mul_add(*x, *y);
    }
}

/// out[2i] = table[high nibble of packed[i]], out[2i + 1] = table[low nibble];
/// an odd last element takes a high nibble.
pub(crate) fn unpack_nibbles(packed: &[u8], table: &[f32; 16], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    let done = super::simd_x86::unpack_nibbles(packed, table, out);
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    for (pair, byte) in out[2 * done..].chunks_mut(2).zip(&packed[done..]) {
        pair[0] = table[(byte >> 4) as usize];
        if let [_, second] = pair {
            *second = table[(byte & 15) as usize];
        }
    }
}

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts, the first with few enough bits that its product with a
/// small integer is exact (Cody and Waite).
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// 1.5 · 2²³: adding it rounds a small number to an integer, which then stands
/// in the low bits.
const ROUND: f32 = 12_582_912.0;

/// e^x within 2 units in the last place; 0 below −86.9, ∞ above 88.72, NaN for
/// NaN. Coefficients from Cephes `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Comparisons instead of `clamp`, so that NaN passes through.
    let clamped = if x > 89.0 { 89.0 } else { x };
    let clamped = if clamped < -88.0 { -88.0 } else { clamped };
    let shifted = clamped.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_HIGH, clamped);
    let r = n.mul_add(-LN2_LOW, r);
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_6e-1);
    let p = p.mul_add(r, 5e-1);
    let p = (r * r).mul_add(p, r) + 1.0;
    // 2^(n−1) by its bits, then times two: n may be 128.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(126 << 23));
    let y = p * power * 2.0;
    let y = if x < -86.9 { 0.0 } else { y };
    if x > 88.722_84 { f32::INFINITY } else { y }
}

/// 1 / (1 + e^−x).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// tanh within 2 units in the last place (Cephes `tanhf`).
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let z = x * x;
    let p = -5.704_988_7e-3f32;
    let p = p.mul_add(z, 2.063_908_8e-2);
    let p = p.mul_add(z, -5.373_971_6e-2);
    let p = p.mul_add(z, 1.333_144_2e-1);
    let p = p.mul_add(z, -3.333_328e-1);
    let near = (p * z).mul_add(x, x);
    let a = x.abs();
    let far = 1.0 - 2.0 / (exp(a + a) + 1.0);
    if a < 0.625 { near } else { far.copysign(x) }
}

/// The error function within 2 units in the last place (N. Juffa's minimax
/// polynomials, public domain): 1 − e^p(|x|) away from zero, a polynomial near
/// it.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let a = x.abs();
    let a = if a > 10.0 { 10.0 } else { a };
    let z = a * a;
    let p = (-1.728_534_7e-5f32).mul_add(a, 3.831_971_3e-4);
    let q = (-3.883_964_4e-3f32).mul_add(a, 2.425_462_2e-2);
    let p = p.mul_add(z, q);
    let p = p.mul_add(a, -1.067_778_8e-1);
    let p = p.mul_add(a, -6.348_467e-1);
    let p = p.mul_add(a, -1.287_175_1e-1);
    let far = 1.0 - exp(p.mul_add(a, -a));
    let p = -5.967_617e-4f32;
    let p = p.mul_add(z, 4.991_194_2e-3);
    let p = p.mul_add(z, -2.676_813_5e-2);
    let p = p.mul_add(z, 1.128_199_25e-1);
    let p = p.mul_add(z, -3.761_253_4e-1);
    let p = p.mul_add(z, 1.283_791_7e-1);
    let near = p.mul_add(x, x);
    if a > 0.927_734_4 { far.copysign(x) } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ulps(got: f32, want: f64) -> f64 {
        let unit = f64::from(f32::EPSILON) * 2f64.powi((want.abs().log2().floor() as i32).max(-126));
        (f64::from(got) - want).abs() / unit
    }

    #[test]
    fn exp_is_within_two_ulps_and_right_at_the_ends() {
        let mut worst = 0f64;
        for i in 0..2_000_000 {
            let x = -86.9 + 175.6 * i as f32 / 2_000_000.0;
            worst = worst.max(ulps(exp(x), f64::from(x).exp()));
        }
        assert!(worst <= 2.0, "{worst} ulp");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_within_two_ulps() {
        let mut worst = 0f64;
        for i in 1..1_000_000 {
            let x = -12.0 + 24.0 * i as f32 / 1_000_000.0;
            if x != 0.0 {
                worst = worst.max(ulps(tanh(x), f64::from(x).tanh()));
            }
        }
        assert!(worst <= 2.5, "{worst} ulp");
        assert_eq!((tanh(50.0), tanh(-50.0), tanh(0.0)), (1.0, -1.0, 0.0));
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn erf_is_within_two_ulps() {
        let mut worst = 0f64;
        for i in 1..100_000 {
            let x = -6.0 + 12.0 * i as f32 / 100_000.0;
            if x != 0.0 {
                worst = worst.max(ulps(erf(x), libm::erf(f64::from(x))));
            }
        }
        assert!(worst <= 2.0, "{worst} ulp");
        assert_eq!((erf(1e9), erf(f32::NEG_INFINITY), erf(0.0)), (1.0, -1.0, 0.0));
        assert!(erf(f32::NAN).is_nan());
    }

    #[test]
    fn sums_are_the_same_bits_on_every_instruction_set() {
        let x: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1013) as f32 * 0.37 - 180.0).collect();
        let y: Vec<f32> = (0..1000).map(|i| ((i * 104_729) % 997) as f32 * 0.11 - 50.0).collect();
        assert_eq!(
            dot(&x, &y).to_bits(),
            dispatch(
                #[inline(always)]
                || dot(&x, &y)
            )
            .to_bits()
        );
        assert_eq!(
            sum(&x).to_bits(),
            dispatch(
                #[inline(always)]
                || sum(&x)
            )
            .to_bits()
        );
        let exact: f64 = x.iter().map(|v| f64::from(*v)).sum();
        assert!((f64::from(sum(&x)) - exact).abs() < 1e-2);
        assert_eq!(max(&x), x.iter().copied().fold(f32::MIN, f32::max));
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }
}
