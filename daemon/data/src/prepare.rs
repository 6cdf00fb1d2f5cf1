//! From a file to examples and a report.

use std::collections::HashSet;
use std::path::Path;

use crate::error::{DataError, Result};
use crate::example::{Example, Examples, Role};
use crate::intake::{Intake, take_in};
use crate::options::DataOptions;
use crate::report::{DatasetReport, RenderedSample};
use crate::split::set_aside;
use crate::tokenizer::ChatTokenizer;

/// A dataset ready to train on.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// What is trained on.
    pub train: Examples,
    /// The validation rows: of the same kind, perhaps none.
    pub validation: Examples,
    /// What was found.
    pub report: DatasetReport,
}

/// Reads a dataset and turns its rows into examples. The file is streamed:
/// only token ids are kept.
///
/// With a `validation` file its rows are the validation rows, and
/// [`DataOptions::validation_fraction`] is not used.
///
/// # Errors
/// [`DataError::Read`] and [`DataError::File`] for a file that cannot be used
/// at all, [`DataError::TooLong`] if long rows are refused. A bad row is no error:
/// it is in the report.
pub fn prepare(
    data: &Path,
    validation: Option<&Path>,
    tokenizer: &ChatTokenizer,
    options: &DataOptions,
) -> Result<Prepared> {
    options.check()?;
    let Intake { examples, hashes, mut report } = take_in(data, tokenizer, options)?;
    report.tokens = examples.row_tokens();
    report.trained_tokens = examples.trained_tokens();
    let (train, validation) = match validation {
        Some(path) => {
            let limits = DataOptions { max_rows: None, ..options.clone() };
            let held = take_in(path, tokenizer, &limits)?;
            if held.examples.kind != examples.kind {
                return Err(DataError::File {
                    path: path.to_owned(),
                    problem: format!(
                        "the validation rows are {}, the training rows {}",
                        held.report.format, report.format
                    ),
                    remedy: "Give a validation file of the same kind.".into(),
                });
            }
            let known: HashSet<u128> = hashes.into_iter().collect();
            let shared = held.hashes.iter().filter(|hash| known.contains(hash)).count();
            if shared > 0 {
                report.warnings.push(format!(
                    "{shared} of {} validation rows are training rows too: the validation loss \
                     will look better than it is",
                    held.hashes.len()
                ));
            }
            report.validation_counts = Some(held.report.row_counts());
            report.warnings.extend(held.report.warnings.iter().map(|warning| format!("validation file: {warning}")));
            if !held.report.unused_keys.is_empty() {
                let keys: Vec<String> = held.report.unused_keys.keys().map(|key| format!("`{key}`")).collect();
                report.warnings.push(format!("validation file: nothing reads {}", keys.join(", ")));
            }
            report.validation_sha256 = Some(held.report.sha256);
            report.validation_bad_rows = held.report.bad_rows;
            (examples, held.examples)
        }
        None => {
            let aside = set_aside(&hashes, options.validation_fraction, options.seed);
            if options.validation_fraction > 0.0 && !aside.contains(&true) {
                report.warnings.push("no row is set aside for validation: there are no two different rows".into());
            }
            part(examples, &aside)
        }
    };
    report.validation_rows = validation.len();
    report.validation_tokens = validation.row_tokens();
    report.validation_trained_tokens = validation.trained_tokens();
    report.samples = samples(&train, tokenizer);
    Ok(Prepared { train, validation, report })
}

fn part(examples: Examples, aside: &[bool]) -> (Examples, Examples) {
    let Examples { kind, sequence_length, list } = examples;
    let (mut train, mut validation) = (Vec::new(), Vec::new());
    for (example, &aside) in list.into_iter().zip(aside) {
        if aside { validation.push(example) } else { train.push(example) }
    }
    [train, validation].map(|list| Examples { kind, sequence_length, list }).into()
}

/// The first, the middle and the last training row.
fn samples(examples: &Examples, tokenizer: &ChatTokenizer) -> Vec<RenderedSample> {
    let count = examples.len();
    let mut places = vec![0, count / 2, count.saturating_sub(1)];
    places.dedup();
    places.truncate(count);
    let sample = |example: &Example| {
        let mut all = Vec::new();
        for document in example.trained_documents() {
            let mut written = pieces(tokenizer, &document.tokens, &document.trained);
            if document.role == Role::Rejected {
                // The prompt stands before the chosen completion already.
                all.push(("\n(rejected:) ".into(), false));
                written.drain(..written.len().saturating_sub(1));
            }
            // An answer to avoid is not one that the model learns to give.
            if document.role == Role::Rejected || document.label == Some(false) {
                written.iter_mut().for_each(|(_, trained)| *trained = false);
            }
            all.append(&mut written);
            if let Some(label) = document.label {
                let verdict = if label { "\n(desired)" } else { "\n(not desired)" };
                all.push((verdict.into(), false));
            }
        }
        RenderedSample { line: example.line, pieces: all }
    };
    places.into_iter().filter_map(|place| examples.list.get(place)).map(sample).collect()
}

/// The tokens' text, cut where training starts and stops.
fn pieces(tokenizer: &ChatTokenizer, tokens: &[u32], trained: &[bool]) -> Vec<(String, bool)> {
    let mut pieces = Vec::new();
    let mut before = String::new();
    let mut from = 0;
    for to in 1..=tokens.len() {
        if to < tokens.len() && trained[to] == trained[from] {
            continue;
        }
        // Decoders treat the start of a text unlike its middle: the piece is the
        // text up to its end, less the text up to its start.
        let text = tokenizer.decode(&tokens[..to], false).unwrap_or_default();
        let piece = match text.strip_prefix(before.as_str()) {
            Some(piece) => piece.to_owned(),
            None => tokenizer.decode(&tokens[from..to], false).unwrap_or_default(),
        };
        // Ids that the tokenizer does not know decode to nothing.
        let piece = if piece.is_empty() {
            tokens[from..to].iter().map(|&id| tokenizer.token_text(id)).collect()
        } else {
            piece
        };
        pieces.push((piece, trained[from]));
        (before, from) = (text, to);
    }
    pieces
}

#[cfg(test)]
mod tests;
