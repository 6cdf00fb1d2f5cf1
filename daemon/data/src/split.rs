//! Which rows become validation rows.

use std::collections::HashMap;

use crate::order::mix;

/// One flag per row: whether it is a validation row. About `fraction` of the rows
/// are. The seed and the row's hash decide, so equal rows are always on the same
/// side, and most rows stay on their side when others join.
///
/// With at least two different rows and a positive fraction, at least one row is
/// set aside and at least one is not.
pub(crate) fn set_aside(hashes: &[u128], fraction: f64, seed: u64) -> Vec<bool> {
    let mut counts: HashMap<u128, usize> = HashMap::new();
    for hash in hashes {
        *counts.entry(*hash).or_default() += 1;
    }
    if fraction <= 0.0 || counts.len() < 2 {
        return vec![false; hashes.len()];
    }
    let target = ((hashes.len() as f64 * fraction).round() as usize).max(1);
    let mut groups: Vec<(u64, u128, usize)> =
        counts.iter().map(|(&hash, &count)| (key(hash, seed), hash, count)).collect();
    groups.sort_unstable();
    let mut chosen: HashMap<u128, bool> = HashMap::new();
    let mut taken = 0;
    // The last group always stays: something must be left to train on.
    for &(_, hash, count) in &groups[..groups.len() - 1] {
        if taken + count <= target {
            chosen.insert(hash, true);
            taken += count;
        }
    }
    if taken == 0
        && let Some(&(_, hash, _)) = groups.iter().min_by_key(|(key, _, count)| (*count, *key))
    {
        chosen.insert(hash, true);
    }
    hashes.iter().map(|hash| chosen.contains_key(hash)).collect()
}

fn key(hash: u128, seed: u64) -> u64 {
    mix(hash as u64 ^ mix((hash >> 64) as u64 ^ mix(seed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash_of(index: u64) -> u128 {
        u128::from(mix(index + 1)) << 64 | u128::from(mix(index + 77))
    }

    #[test]
    fn the_share_is_met_and_equal_rows_stay_together() {
        for seed in 0..20 {
            let hashes: Vec<u128> = (0..1000).map(|row| hash_of(row % 700)).collect();
            let aside = set_aside(&hashes, 0.1, seed);
            let count = aside.iter().filter(|&&aside| aside).count();
            assert!((99..=100).contains(&count), "{count}");
            for row in 0..300 {
                assert_eq!(aside[row], aside[row + 700]);
            }
        }
        assert_ne!(
            set_aside(&(0..50).map(hash_of).collect::<Vec<_>>(), 0.2, 1),
            set_aside(&(0..50).map(hash_of).collect::<Vec<_>>(), 0.2, 2)
        );
    }

    #[test]
    fn small_sets_keep_one_row_on_each_side() {
        for rows in 2..8 {
            for fraction in [0.01, 0.5, 0.99] {
                let hashes: Vec<u128> = (0..rows).map(hash_of).collect();
                let aside = set_aside(&hashes, fraction, 3);
                assert!(aside.contains(&true) && aside.contains(&false), "{rows} {fraction}");
            }
        }
        assert_eq!(set_aside(&[hash_of(1)], 0.5, 0), [false]);
        assert_eq!(set_aside(&[hash_of(1); 4], 0.5, 0), [false; 4]);
        assert_eq!(set_aside(&[hash_of(1), hash_of(2)], 0.0, 0), [false; 2]);
    }

    #[test]
    fn rows_that_join_move_few_others() {
        let before: Vec<u128> = (0..1000).map(hash_of).collect();
        let after: Vec<u128> = (0..1020).map(hash_of).collect();
        let (a, b) = (set_aside(&before, 0.1, 9), set_aside(&after, 0.1, 9));
        let moved = (0..1000).filter(|&row| a[row] != b[row]).count();
        assert!(moved <= 10, "{moved}");
    }
}
