//! The largest micro-batches of a run.

use finetuned_data::{Examples, Row};
use finetuned_plugin_api::loss::Needs;

use crate::train::micro_batch::{MicroBatch, Placed, documents};
use crate::train::order::Order;

/// Where a run's micro-batches come from.
pub(super) struct Rows<'a> {
    pub order: Order,
    pub examples: &'a Examples,
    pub needs: Needs,
    /// Whether the objective reads mismatched completions.
    pub kl: bool,
    /// The steps of the run.
    pub steps: usize,
}

impl<'a> Rows<'a> {
    /// The micro-batches of `micro` sequences with the most tokens and with the most
    /// listed tokens: one, or two that differ.
    pub fn largest(&mut self, micro: usize) -> Vec<MicroBatch> {
        // Every epoch shuffles anew; a few show what the rest can bring.
        let looked_at = self.steps.min(4 * self.order.steps_of_epochs(1.0).max(1));
        let (mut longest, mut most_listed): ((usize, Vec<Placed<'a>>), _) = Default::default();
        let mut most = 0;
        for step in 1..=looked_at {
            for documents in self.micro_batches(step, micro) {
                let tokens = documents.iter().map(|placed| placed.document.len()).sum();
                let listed: usize = listed_in(&documents);
                if listed > most {
                    (most, most_listed) = (listed, documents.clone());
                }
                if tokens > longest.0 {
                    longest = (tokens, documents);
                }
            }
        }
        let listed_in_longest: usize = listed_in(&longest.1);
        let mut found = vec![MicroBatch::new(&longest.1, &self.needs)];
        if most > listed_in_longest {
            found.push(MicroBatch::new(&most_listed, &self.needs));
        }
        found
    }

    /// The first micro-batches of the run, at most `count`.
    pub fn first(&mut self, micro: usize, count: usize) -> Vec<MicroBatch> {
        let first = self.micro_batches(1, micro);
        first.iter().take(count).map(|documents| MicroBatch::new(documents, &self.needs)).collect()
    }

    fn micro_batches(&mut self, step: usize, micro: usize) -> Vec<Vec<Placed<'a>>> {
        let batch: Vec<&Row> = self.order.step(step).0.iter().collect();
        let sequences: Vec<Vec<Placed<'a>>> =
            (0..batch.len()).map(|at| documents(self.examples, &batch, at, self.kl)).collect();
        sequences.chunks(micro.max(1)).map(<[_]>::concat).collect()
    }
}

/// Tokens that the LM head reads if the loss does not ask for prompts.
fn listed_in(documents: &[Placed]) -> usize {
    documents.iter().map(|placed| placed.document.trained_tokens()).sum()
}
