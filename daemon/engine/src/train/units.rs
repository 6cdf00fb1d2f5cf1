//! What a batch is made of: units (rows, pairs, labelled completions) as
//! documents of counted tokens, and micro-batches of them.

use finetuned_data::{Examples, Row, epoch_rows};
use finetuned_plugin_api::loss::{Needs, Role, Sequence, Totals};

use crate::model::batch::TokenBatch;
use crate::recipe::TrainRecipe;

/// One document of a micro-batch.
#[derive(Debug, Clone, Copy)]
pub struct Document<'a> {
    /// Prompt and completion, or a whole row.
    pub parts: [&'a [u32]; 2],
    /// Which tokens are targets; None: all of the second part.
    pub trained: Option<&'a [bool]>,
    pub role: Role,
    pub pair: Option<u32>,
    pub label: Option<bool>,
}

impl Document<'_> {
    pub fn len(&self) -> usize {
        self.parts[0].len() + self.parts[1].len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens that are trained on.
    pub fn targets(&self) -> usize {
        (1..self.len()).filter(|i| self.is_target(*i)).count()
    }

    fn is_target(&self, i: usize) -> bool {
        match self.trained {
            Some(trained) => trained.get(i).copied().unwrap_or(false),
            None => i >= self.parts[0].len(),
        }
    }
}

/// A micro-batch, ready for the model and for the loss.
#[derive(Debug, Clone)]
pub struct MicroBatch {
    pub batch: TokenBatch,
    /// Row of the stream that predicts each counted token.
    pub rows: Vec<u32>,
    /// The counted tokens.
    pub targets: Vec<u32>,
    pub weight: Vec<f32>,
    /// Whether a counted token is trained on (false: a prompt's, counted because
    /// the loss asked).
    pub completion: Vec<bool>,
    pub sequences: Vec<Sequence>,
    /// Row of each document's last token, where a value head reads.
    pub last: Vec<u32>,
}

impl MicroBatch {
    /// Lays documents out flat and lists their counted tokens. The first token
    /// of a document is never counted: nothing predicts it.
    pub fn new(documents: &[Document], needs: &Needs) -> MicroBatch {
        let mut tokens = Vec::new();
        let mut lengths = Vec::with_capacity(documents.len());
        let mut micro = MicroBatch {
            batch: TokenBatch::from_documents([]),
            rows: Vec::new(),
            targets: Vec::new(),
            weight: Vec::new(),
            completion: Vec::new(),
            sequences: Vec::with_capacity(documents.len()),
            last: Vec::with_capacity(documents.len()),
        };
        for document in documents {
            let offset = tokens.len();
            tokens.extend(document.parts.iter().copied().flatten());
            lengths.push(document.len());
            if !document.is_empty() {
                micro.last.push((tokens.len() - 1) as u32);
            }
            let first = micro.targets.len();
            for i in 1..document.len() {
                let target = document.is_target(i);
                if target || needs.prompt_logp {
                    micro.rows.push((offset + i - 1) as u32);
                    micro.targets.push(tokens[offset + i]);
                    micro.weight.push(1.0);
                    micro.completion.push(target);
                }
            }
            micro.sequences.push(Sequence {
                tokens: first..micro.targets.len(),
                role: document.role,
                pair: document.pair,
                label: document.label,
                reward: None,
            });
        }
        let segments = finetuned_shaders::Segments::from_lengths(lengths);
        micro.batch = TokenBatch { positions: segments.positions(), segments, tokens };
        micro
    }

    pub fn totals(&self) -> Totals {
        Totals::of(&self.sequences, &self.weight, &self.completion)
    }

    /// Tokens that are trained on.
    pub fn trained_tokens(&self) -> usize {
        self.completion.iter().filter(|c| **c).count()
    }
}

/// The documents of one unit. `at` is the unit's place in its batch: it numbers
/// the pairs, and a labelled row without a mismatched completion of its own
/// borrows the next row's.
pub fn documents<'a>(examples: &'a Examples, batch: &[&Row], at: usize, kl: bool) -> Vec<Document<'a>> {
    let row = batch[at];
    let mut out = Vec::new();
    match examples {
        Examples::Supervised(list) => {
            for example in row.examples.iter().filter_map(|i| list.get(*i)) {
                out.push(Document {
                    parts: [&example.tokens, &[]],
                    trained: Some(&example.trained),
                    role: Role::Plain,
                    pair: None,
                    label: None,
                });
            }
        }
        Examples::Pairs(list) => {
            for pair in row.examples.iter().filter_map(|i| list.get(*i)) {
                for (completion, role) in [(&pair.chosen, Role::Chosen), (&pair.rejected, Role::Rejected)] {
                    out.push(Document {
                        parts: [&pair.prompt, completion],
                        trained: None,
                        role,
                        pair: Some(at as u32),
                        label: None,
                    });
                }
            }
        }
        Examples::Labelled(list) => {
            for row_example in row.examples.iter().filter_map(|i| list.get(*i)) {
                out.push(Document {
                    parts: [&row_example.prompt, &row_example.completion],
                    trained: None,
                    role: Role::Completion,
                    pair: None,
                    label: Some(row_example.label),
                });
                if !kl {
                    continue;
                }
                let next = batch[(at + 1) % batch.len()].examples.first().and_then(|i| list.get(*i));
                let mismatched = row_example.kl_completion.as_ref().or(next.map(|n| &n.completion));
                if let Some(completion) = mismatched {
                    out.push(Document {
                        parts: [&row_example.prompt, completion],
                        trained: None,
                        role: Role::KlCompletion,
                        pair: None,
                        label: None,
                    });
                }
            }
        }
    }
    out
}

/// The order of the whole run: which rows make up which step. A pure function
/// of the recipe and the data, so a step's number is the data cursor.
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
            recipe.packing && matches!(examples, Examples::Supervised(_)),
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
    use finetuned_data::Example;

    fn example(tokens: &[u32], trained: &[bool]) -> Example {
        Example { tokens: tokens.to_vec(), trained: trained.to_vec(), line: 1 }
    }

    #[test]
    fn counted_tokens_are_shifted_and_never_the_first_of_a_document() {
        let examples =
            Examples::Supervised(vec![example(&[5, 6, 7], &[false, false, true]), example(&[8, 9], &[true, true])]);
        let row = Row { examples: vec![0, 1] };
        let documents = documents(&examples, &[&row], 0, false);
        let micro = MicroBatch::new(&documents, &Needs::default());
        assert_eq!(micro.batch.tokens, [5, 6, 7, 8, 9]);
        assert_eq!(micro.batch.positions, [0, 1, 2, 0, 1]);
        // 7 is predicted at row 1 (token 6), 9 at row 3 (token 8); 8 begins a document.
        assert_eq!((micro.rows, micro.targets), (vec![1, 3], vec![7, 9]));
        assert_eq!(micro.sequences.iter().map(|s| s.tokens.clone()).collect::<Vec<_>>(), [0..1, 1..2]);
    }

    #[test]
    fn prompts_are_counted_only_when_asked_for() {
        let examples = Examples::Pairs(vec![finetuned_data::PairExample {
            prompt: vec![1, 2, 3],
            chosen: vec![4],
            rejected: vec![5, 6],
            line: 1,
        }]);
        let row = Row { examples: vec![0] };
        let documents = documents(&examples, &[&row], 0, false);
        let plain = MicroBatch::new(&documents, &Needs::default());
        assert_eq!(plain.targets, [4, 5, 6]);
        let with = MicroBatch::new(&documents, &Needs { prompt_logp: true, ..Needs::default() });
        assert_eq!(with.targets, [2, 3, 4, 2, 3, 5, 6]);
        assert_eq!(with.trained_tokens(), 3);
        assert_eq!(with.totals().pairs, 1);
    }

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
        assert_ne!(all[0..3], all[3..6], "the second epoch has an order of its own");
        assert_eq!(rows(&mut order, 2), all[1], "an earlier step can be asked for again");
        assert!(order.step(3).1 && !order.step(4).1);
    }
}
