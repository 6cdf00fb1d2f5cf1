//! Where one code ends and the next begins, to the bit.
//!
//! [`nearest_code`] and [`nearest_in`] never fall as their number grows, so each
//! is told by the smallest numbers that reach its codes: the code of x is how many
//! of them x is not below. A device that only compares then gives the host's
//! codes, whatever its rounding of differences.

use std::sync::OnceLock;

use super::reference::{dynamic_map, nearest_code, nearest_in};

/// For codes 1 to 15 of NF4, the smallest number in [−1, 1] that has the code or
/// a higher one.
pub(crate) fn of_codes() -> &'static [f32; 15] {
    static FOUND: OnceLock<[f32; 15]> = OnceLock::new();
    FOUND.get_or_init(|| std::array::from_fn(|below| first(|x| usize::from(nearest_code(x)) > below)))
}

/// The same for codes 1 to 255 of the nested scales.
pub(crate) fn of_map() -> &'static [f32] {
    static FOUND: OnceLock<Vec<f32>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let map = dynamic_map();
        (0..u8::MAX).map(|below| first(|x| nearest_in(&map, x) > below)).collect()
    })
}

/// The smallest number in [−1, 1] of which a condition holds that holds of 1 and
/// of every number above one of which it holds.
fn first(holds: impl Fn(f32) -> bool) -> f32 {
    let (mut low, mut high) = (ordered(-1.0), ordered(1.0));
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(unordered(middle)) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    unordered(low)
}

/// Words in the order of the numbers.
fn ordered(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_sign_negative() { !bits } else { bits | 1 << 31 }
}

fn unordered(word: u32) -> f32 {
    f32::from_bits(if word >> 31 == 1 { word & !(1 << 31) } else { !word })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Key;

    /// Every number within a thousand steps of a threshold, and many others.
    fn numbers(thresholds: &[f32]) -> Vec<f32> {
        let near = thresholds.iter().flat_map(|t| {
            let at = ordered(*t);
            (at - 1000..at + 1000).map(unordered)
        });
        let others = Key::new(1, 0, 0).uniform_vec(200_000, -1.0, 1.0);
        let special = [0.0, -0.0, 1.0, -1.0, f32::MIN_POSITIVE, -f32::MIN_POSITIVE];
        near.chain(others).chain(special).filter(|x| x.abs() <= 1.0).collect()
    }

    #[test]
    fn counting_thresholds_gives_the_codes_of_the_reference() {
        let thresholds = of_codes();
        for x in numbers(thresholds) {
            let count = thresholds.iter().filter(|t| x >= **t).count();
            assert_eq!(count, usize::from(nearest_code(x)), "{x:e}");
        }
        let (map, thresholds) = (dynamic_map(), of_map());
        assert!(thresholds.windows(2).all(|pair| pair[0] <= pair[1]));
        for x in numbers(thresholds) {
            let count = thresholds.partition_point(|t| x >= *t);
            assert_eq!(count, usize::from(nearest_in(&map, x)), "{x:e}");
        }
    }
}
