//! The order in which examples are trained, and which of them share a row.
//!
//! Everything here is a pure function of its arguments. A resumed run asks again
//! and gets the same rows, so a checkpoint holds an epoch and a position only.

use serde::{Deserialize, Serialize};

/// One sequence of a batch: an example, or several packed behind one another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Indices of examples, in the order they stand in the row.
    pub examples: Vec<usize>,
}

/// The rows of one epoch, in order. Every example is in exactly one of them.
///
/// `lengths` are the examples' tokens. With `shuffle` the examples are taken in
/// the order of [`permutation`]`(n, seed, epoch)`, otherwise as they are. With
/// `packing` each is put whole into the first row that has room for it (first
/// fit); an example longer than `sequence_length` has a row to itself.
pub fn epoch_rows(
    lengths: &[usize],
    packing: bool,
    sequence_length: usize,
    shuffle: bool,
    seed: u64,
    epoch: u64,
) -> Vec<Row> {
    let order: Vec<usize> =
        if shuffle { permutation(lengths.len(), seed, epoch) } else { (0..lengths.len()).collect() };
    if !packing {
        return order.into_iter().map(|example| Row { examples: vec![example] }).collect();
    }
    let mut bins = Bins::new(lengths.len(), sequence_length);
    let mut rows: Vec<Row> = Vec::new();
    for example in order {
        let bin = bins.first_fit(lengths[example], rows.len());
        if bin == rows.len() {
            rows.push(Row { examples: Vec::new() });
        }
        rows[bin].examples.push(example);
    }
    rows
}

/// A permutation of `0..count`: Fisher and Yates' shuffle with random numbers
/// that are a function of `(seed, epoch, place)`.
pub fn permutation(count: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut random = Keyed::new(seed, epoch);
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, random.below(last as u64 + 1) as usize);
    }
    order
}

/// SplitMix64 over a counter.
///
/// # Source
/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators"
/// (OOPSLA 2014).
struct Keyed {
    state: u64,
}

impl Keyed {
    fn new(seed: u64, epoch: u64) -> Self {
        Self { state: mix(mix(seed) ^ mix(epoch.wrapping_add(GOLDEN))) }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// A number below `bound`, by Lemire's method: all are equally likely.
    fn below(&mut self, bound: u64) -> u64 {
        loop {
            let wide = u128::from(self.next()) * u128::from(bound);
            let low = wide as u64;
            if low >= bound.wrapping_neg() % bound {
                return (wide >> 64) as u64;
            }
        }
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finaliser: every bit of the result depends on every bit of `x`.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The free room of each row in a tree of maxima: the first row with enough room
/// is found in logarithmic time.
struct Bins {
    tree: Vec<usize>,
    leaves: usize,
}

impl Bins {
    fn new(most: usize, capacity: usize) -> Self {
        let leaves = most.max(1).next_power_of_two();
        Self { tree: vec![capacity; 2 * leaves], leaves }
    }

    /// Takes `length` from the first of the `used` bins that has room, otherwise
    /// from the next unused bin. Returns the bin.
    fn first_fit(&mut self, length: usize, used: usize) -> usize {
        let mut bin = used;
        if self.tree[1] >= length {
            let mut node = 1;
            while node < self.leaves {
                node *= 2;
                if self.tree[node] < length {
                    node += 1;
                }
            }
            bin = bin.min(node - self.leaves);
        }
        let mut node = bin + self.leaves;
        self.tree[node] = self.tree[node].saturating_sub(length);
        while node > 1 {
            node /= 2;
            self.tree[node] = self.tree[2 * node].max(self.tree[2 * node + 1]);
        }
        bin
    }
}
