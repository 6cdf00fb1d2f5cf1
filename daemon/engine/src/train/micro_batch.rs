//! A micro-batch: documents laid out flat for the model and for the loss.

use std::borrow::Cow;

use finetuned_data::{Document, Example, Examples, Role, Row};
use finetuned_plugin_api::loss::{Needs, Sequence, Totals};

use crate::model::batch::TokenBatch;

/// A document with what its batch adds to it.
#[derive(Debug, Clone)]
pub struct Placed<'a> {
    /// Borrowed from the examples, or joined from two of them.
    pub document: Cow<'a, Document>,
    /// The number that the documents of a pair share.
    pub pair: Option<u32>,
}

impl Placed<'_> {
    /// Whether the document is trained; a mismatched completion only estimates a
    /// divergence.
    pub fn is_trained(&self) -> bool {
        self.document.role != Role::KlCompletion
    }
}

/// The documents of row `at` of a batch. With `kl`, a labelled completion is
/// followed by a mismatched one: the row's, if it brings one, else the completion of
/// the batch's next row.
pub fn documents<'a>(examples: &'a Examples, batch: &[&Row], at: usize, kl: bool) -> Vec<Placed<'a>> {
    let example = |index: &usize| examples.list.get(*index);
    let mut placed = Vec::new();
    for row in batch[at].examples.iter().filter_map(example) {
        let has_mismatched = row.documents.iter().any(|document| document.role == Role::KlCompletion);
        for document in &row.documents {
            let pair = matches!(document.role, Role::Chosen | Role::Rejected).then_some(at as u32);
            if kl || document.role != Role::KlCompletion {
                placed.push(Placed { document: Cow::Borrowed(document), pair });
            }
            if kl && document.role == Role::Completion && !has_mismatched {
                let next = batch[(at + 1) % batch.len()].examples.first().and_then(example);
                let joined = next.and_then(|next| mismatched(document, next, examples.sequence_length));
                placed.extend(joined.map(|document| Placed { document: Cow::Owned(document), pair: None }));
            }
        }
    }
    placed
}

/// A document's prompt before another example's completion, which is cut if both
/// together are longer than a document may be. Nothing trains on the result, so the
/// end that the cut takes is not missed.
fn mismatched(document: &Document, other: &Example, sequence_length: usize) -> Option<Document> {
    let answer = other.documents.first()?.answer();
    let room = sequence_length.saturating_sub(document.prompt_len());
    let joined = Document::completion(document.prompt(), &answer[..answer.len().min(room)], Role::KlCompletion);
    Some(Document { reward: document.reward, columns: document.columns.clone(), ..joined })
}

/// A micro-batch, ready for the model and for the loss.
#[derive(Debug, Clone)]
pub struct MicroBatch {
    /// The tokens of all documents.
    pub batch: TokenBatch,
    /// For each token that the loss sees: the row of the stream that predicts it.
    pub rows: Vec<u32>,
    /// The tokens that the loss sees.
    pub targets: Vec<u32>,
    /// Weight of each of them in the loss.
    pub weight: Vec<f32>,
    /// Whether each of them is trained. A prompt's token is not; the loss sees it
    /// only if it asks for prompts.
    pub completion: Vec<bool>,
    /// The documents, as ranges of the tokens that the loss sees.
    pub sequences: Vec<Sequence>,
    /// Row of each document's last token, where a value head reads.
    pub last: Vec<u32>,
}

impl MicroBatch {
    /// Lays documents out flat and lists the tokens that the loss sees. The first
    /// token of a document is none of them: nothing predicts it.
    pub fn new(documents: &[Placed], needs: &Needs) -> MicroBatch {
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
        for Placed { document, pair } in documents {
            let offset = tokens.len();
            tokens.extend_from_slice(&document.tokens);
            lengths.push(document.len());
            if !document.is_empty() {
                micro.last.push((tokens.len() - 1) as u32);
            }
            let first = micro.targets.len();
            for i in 1..document.len() {
                let trained = document.is_trained(i);
                if trained || needs.prompt_logp {
                    micro.rows.push((offset + i - 1) as u32);
                    micro.targets.push(document.tokens[i]);
                    micro.weight.push(if trained { document.weight(i) } else { 1.0 });
                    micro.completion.push(trained);
                }
            }
            micro.sequences.push(Sequence {
                tokens: first..micro.targets.len(),
                role: document.role,
                pair: *pair,
                label: document.label,
                reward: None,
                columns: Vec::new(),
            });
        }
        let segments = finetuned_shaders::Segments::from_lengths(lengths);
        micro.batch = TokenBatch { positions: segments.positions(), segments, tokens };
        micro
    }

    /// What a loss divides by, of this micro-batch alone.
    pub fn totals(&self) -> Totals {
        Totals::of(&self.sequences, &self.weight, &self.completion)
    }

    /// Number of trained tokens.
    pub fn trained_tokens(&self) -> usize {
        self.completion.iter().filter(|c| **c).count()
    }
}

#[cfg(test)]
mod tests {
    use finetuned_data::DataKind;

    use super::*;

    fn examples(kind: DataKind, list: Vec<Example>) -> Examples {
        Examples { kind, sequence_length: 8, list }
    }

    #[test]
    fn trained_tokens_are_shifted_and_never_the_first_of_a_document() {
        let list = vec![
            Example::plain(vec![5, 6, 7], vec![false, false, true], 1),
            Example::plain(vec![8, 9], vec![true, true], 2),
        ];
        let examples = examples(DataKind::Supervised, list);
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
    fn the_loss_sees_prompts_only_if_it_asks() {
        let examples = examples(DataKind::Pairs, vec![Example::pair(&[1, 2, 3], &[4], &[5, 6], 1)]);
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
    fn a_token_weighs_what_its_row_says_and_a_prompts_token_one() {
        let mut example = Example::plain(vec![5, 6, 7, 8], vec![false, false, true, true], 1);
        example.documents[0].weights = Some(vec![9.0, 9.0, 0.5, 2.0]);
        let examples = examples(DataKind::Supervised, vec![example]);
        let row = Row { examples: vec![0] };
        let documents = documents(&examples, &[&row], 0, false);
        let micro = MicroBatch::new(&documents, &Needs { prompt_logp: true, ..Needs::default() });
        assert_eq!(micro.weight, [1.0, 0.5, 2.0]);
        assert_eq!(micro.totals().role(Role::Plain).completion_weight, 2.5);
    }

    fn labelled_tokens(list: Vec<Example>) -> Vec<Vec<u32>> {
        let examples = examples(DataKind::Labelled, list);
        let rows: Vec<Row> = (0..examples.len()).map(|i| Row { examples: vec![i] }).collect();
        let batch: Vec<&Row> = rows.iter().collect();
        let of_row = |at| documents(&examples, &batch, at, true);
        (0..batch.len()).flat_map(of_row).map(|placed| placed.document.tokens.clone()).collect()
    }

    #[test]
    fn a_labelled_row_borrows_the_next_completion_unless_it_brings_one() {
        let list = vec![
            Example::labelled(&[1, 2], &[3], true, None, 1),
            Example::labelled(&[4], &[5, 6], false, Some(&[7]), 2),
            Example::labelled(&[8, 9], &[10], true, None, 3),
        ];
        let expected: [&[u32]; 6] = [&[1, 2, 3], &[1, 2, 5, 6], &[4, 5, 6], &[4, 7], &[8, 9, 10], &[8, 9, 3]];
        assert_eq!(labelled_tokens(list), expected);
    }

    #[test]
    fn a_borrowed_completion_is_cut_at_the_sequence_length() {
        let list = vec![
            Example::labelled(&[1, 2, 3, 4, 5, 6], &[7], true, None, 1),
            Example::labelled(&[10], &[11, 12, 13, 14, 15, 16], false, None, 2),
        ];
        let expected: [&[u32]; 4] =
            [&[1, 2, 3, 4, 5, 6, 7], &[1, 2, 3, 4, 5, 6, 11, 12], &[10, 11, 12, 13, 14, 15, 16], &[10, 7]];
        assert_eq!(labelled_tokens(list), expected);
    }
}
