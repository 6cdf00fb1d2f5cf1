//! The micro-batch of a run: the largest that fits, and the one that is taken.

use finetuned_data::{Document, Examples, Row};

use crate::train::heads::Heads;
use crate::train::micro_batch::documents;
use crate::train::order::Order;

/// The most tokens, and rows of the heads, that a micro-batch of the run holds.
pub(super) fn largest_micro_batch(
    order: &mut Order,
    examples: &Examples,
    micro: usize,
    steps: usize,
    kl: bool,
    heads: Heads,
) -> (usize, usize) {
    let read = |d: &Document| if heads.language { d.trained_tokens() } else { 0 } + usize::from(heads.value);
    let mut most = (0, 0);
    // Every epoch shuffles anew; a few show what the rest can bring.
    let looked_at = steps.min(4 * order.steps_of_epochs(1.0).max(1));
    for step in 1..=looked_at {
        let rows = order.step(step).0.to_vec();
        let batch: Vec<&Row> = rows.iter().collect();
        let sizes: Vec<(usize, usize)> = (0..batch.len())
            .map(|at| {
                documents(examples, &batch, at, kl)
                    .iter()
                    .map(|placed| (placed.document.len(), read(&placed.document)))
                    .fold((0, 0), |sum, next| (sum.0 + next.0, sum.1 + next.1))
            })
            .collect();
        for chunk in sizes.chunks(micro.max(1)) {
            let sum = chunk.iter().fold((0, 0), |sum, next| (sum.0 + next.0, sum.1 + next.1));
            most = (most.0.max(sum.0), most.1.max(sum.1));
        }
    }
    most
}
