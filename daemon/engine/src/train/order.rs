//! The order of a run: which rows of the stream make up which step.

use finetuned_data::{DataKind, Examples, Row, epoch_rows};

use crate::recipe::TrainRecipe;

/// The rows of each step. A pure function of the recipe and the data, so a step's
/// number is the data cursor.
pub struct Order {
    lengths: Vec<usize>,
    packing: bool,
    sequence_length: usize,
    shuffle: bool,
    seed: u64,
    batch_size: usize,
    /// The epoch now in memory and its rows.
    current: (u64, Vec<Row>),
    /// Steps before the current epoch.
    before: usize,
}

impl Order {
    /// The order that a recipe gives to its examples. Pairs and labelled rows
    /// are never packed.
    pub fn of(examples: &Examples, recipe: &TrainRecipe) -> Order {
        Order::new(
            examples.lengths(),
            recipe.packing && examples.kind == DataKind::Supervised,
            recipe.sequence_length,
            recipe.shuffle,
            recipe.seed,
            recipe.batch_size,
        )
    }

    /// Rows of the first epoch.
    pub fn rows_per_epoch(&self) -> usize {
        if self.packing { self.rows(0).len() } else { self.lengths.len() }
    }

    pub fn new(
        lengths: Vec<usize>,
        packing: bool,
        sequence_length: usize,
        shuffle: bool,
        seed: u64,
        batch_size: usize,
    ) -> Order {
        let rows = epoch_rows(&lengths, packing, sequence_length, shuffle, seed, 0);
        Order { lengths, packing, sequence_length, shuffle, seed, batch_size, current: (0, rows), before: 0 }
    }

    /// Steps of `epochs` passes, the last of which may be a part.
    pub fn steps_of_epochs(&self, epochs: f64) -> usize {
        let whole = epochs.floor() as u64;
        let steps = |epoch: u64| self.rows(epoch).len().div_ceil(self.batch_size);
        let mut total = 0;
        // Without packing every epoch has the same number of rows.
        if self.packing {
            total += (0..whole).map(steps).sum::<usize>();
        } else {
            total += whole as usize * steps(0);
        }
        let part = epochs - whole as f64;
        if part > 0.0 {
            total += (part * steps(whole) as f64).ceil() as usize;
        }
        total.max(1)
    }

    fn rows(&self, epoch: u64) -> Vec<Row> {
        epoch_rows(&self.lengths, self.packing, self.sequence_length, self.shuffle, self.seed, epoch)
    }

    /// The rows of step `step` (from 1), and whether it is its epoch's last.
    /// The last step of an epoch may be short.
    pub fn step(&mut self, step: usize) -> (&[Row], bool) {
        let index = step - 1;
        if index < self.before {
            self.current = (0, self.rows(0));
            self.before = 0;
        }
        loop {
            let steps = self.current.1.len().div_ceil(self.batch_size).max(1);
            if index < self.before + steps {
                let first = (index - self.before) * self.batch_size;
                let end = (first + self.batch_size).min(self.current.1.len());
                let last = index + 1 == self.before + steps;
                return (self.current.1.get(first..end).unwrap_or(&[]), last);
            }
            self.before += steps;
            let next = self.current.0 + 1;
            self.current = (next, self.rows(next));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_comes_once_an_epoch_and_the_cursor_is_the_step() {
        let lengths = vec![3; 10];
        let mut order = Order::new(lengths, false, 16, true, 7, 4);
        assert_eq!(order.steps_of_epochs(2.0), 6);
        assert_eq!(order.steps_of_epochs(0.5), 2);
        let rows = |order: &mut Order, s| order.step(s).0.iter().flat_map(|r| r.examples.clone()).collect::<Vec<_>>();
        let all: Vec<Vec<usize>> = (1..=6).map(|s| rows(&mut order, s)).collect();
        for epoch in all.chunks(3) {
            let mut seen: Vec<usize> = epoch.concat();
            seen.sort_unstable();
            assert_eq!(seen, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(all[0..3], all[3..6], "the second epoch has another order");
        assert_eq!(rows(&mut order, 2), all[1], "an earlier step can be asked for again");
        assert!(order.step(3).1 && !order.step(4).1);
    }
}
