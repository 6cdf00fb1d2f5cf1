//! Order, packing and shuffling: properties that hold for every argument.

use finetuned_data::{Row, epoch_rows, permutation};
use proptest::prelude::*;

/// Packing as its definition says it: each example goes into the first row
/// with room, by looking at every row.
fn plain_first_fit(order: &[usize], lengths: &[usize], capacity: usize) -> Vec<Row> {
    let mut rows: Vec<(usize, Row)> = Vec::new();
    for &example in order {
        let length = lengths[example];
        match rows.iter_mut().find(|(used, _)| used + length <= capacity) {
            Some((used, row)) => {
                *used += length;
                row.examples.push(example);
            }
            None => rows.push((length, Row { examples: vec![example] })),
        }
    }
    rows.into_iter().map(|(_, row)| row).collect()
}

proptest! {
    #[test]
    fn a_permutation_has_every_index_once(count in 0usize..500, seed: u64, epoch: u64) {
        let mut order = permutation(count, seed, epoch);
        prop_assert_eq!(&order, &permutation(count, seed, epoch));
        order.sort_unstable();
        prop_assert_eq!(order, (0..count).collect::<Vec<_>>());
    }

    #[test]
    fn packing_is_first_fit(
        lengths in prop::collection::vec(1usize..80, 0..200),
        capacity in 1usize..100,
        shuffle: bool,
        seed: u64,
        epoch in 0u64..5,
    ) {
        let order = if shuffle {
            permutation(lengths.len(), seed, epoch)
        } else {
            (0..lengths.len()).collect()
        };
        let rows = epoch_rows(&lengths, true, capacity, shuffle, seed, epoch);
        prop_assert_eq!(&rows, &plain_first_fit(&order, &lengths, capacity));
        for row in &rows {
            let total: usize = row.examples.iter().map(|&example| lengths[example]).sum();
            prop_assert!(total <= capacity || row.examples.len() == 1);
        }
        let mut all: Vec<usize> = rows.into_iter().flat_map(|row| row.examples).collect();
        all.sort_unstable();
        prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
    }

    #[test]
    fn without_packing_each_row_is_one_example(count in 0usize..100, seed: u64) {
        let rows = epoch_rows(&vec![5; count], false, 4, true, seed, 0);
        let order: Vec<usize> = rows.iter().map(|row| row.examples[0]).collect();
        prop_assert!(rows.iter().all(|row| row.examples.len() == 1));
        prop_assert_eq!(order, permutation(count, seed, 0));
    }
}

#[test]
fn epochs_and_seeds_differ() {
    let first = permutation(100, 1, 0);
    assert_ne!(first, permutation(100, 1, 1));
    assert_ne!(first, permutation(100, 2, 0));
    // Swapping seed and epoch is no way to the same order either.
    assert_ne!(permutation(100, 0, 1), permutation(100, 1, 0));
}

/// Resume depends on these very numbers: a change here is a change of format.
#[test]
fn the_order_is_frozen() {
    assert_eq!(permutation(10, 42, 0), FROZEN_42_0);
    assert_eq!(permutation(10, 42, 1), FROZEN_42_1);
}

const FROZEN_42_0: [usize; 10] = [6, 1, 3, 5, 4, 9, 8, 7, 2, 0];
const FROZEN_42_1: [usize; 10] = [6, 7, 2, 3, 0, 5, 4, 1, 8, 9];

#[test]
fn every_place_is_equally_likely() {
    let mut counts = [[0u32; 6]; 6];
    for seed in 0..6000 {
        for (place, example) in permutation(6, seed, 3).into_iter().enumerate() {
            counts[place][example] += 1;
        }
    }
    // 1000 expected, standard deviation 29.
    assert!(counts.iter().flatten().all(|count| (870..1130).contains(count)), "{counts:?}");
}

#[test]
fn packing_a_large_set_is_quick_and_tight() {
    let lengths: Vec<usize> = (0..200_000).map(|row| 20 + (row * 7919) % 480).collect();
    let rows = epoch_rows(&lengths, true, 2048, true, 7, 0);
    let total: usize = lengths.iter().sum();
    let filled = total as f64 / (rows.len() * 2048) as f64;
    assert!(filled > 0.98, "{filled}");
}
