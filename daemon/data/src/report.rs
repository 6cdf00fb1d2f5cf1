//! What was found in a dataset: counts, bad rows, and three rows to look at.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::row_error::{BadRowKind, RowError};

/// Bad rows that are listed one by one; more are only counted.
pub const LISTED_BAD_ROWS: usize = 100;

/// A row that could not be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRow {
    /// Line in the file, from 1. For a JSON array, the line the element begins on.
    pub line: usize,
    /// Why, in words for the user.
    pub reason: String,
}

/// One row as the model will see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenderedSample {
    /// Line in the file, from 1.
    pub line: usize,
    /// The text in order, cut where training starts and stops; the flag says
    /// whether the piece's tokens are trained.
    pub pieces: Vec<(String, bool)>,
}

/// Everything `prepare` learned about a dataset. Counts of rows and tokens
/// are of the training file; `validation_*` are of what was set aside.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DatasetReport {
    /// Name of the format the rows are in, for people.
    pub format: String,
    /// How a row became tokens: the model's chat template, the plain layout,
    /// or ids as they were.
    pub layout: String,
    /// SHA-256 of the file's bytes (compressed, if it is), in hex.
    pub sha256: String,
    /// Rows in the file; blank lines are no rows.
    pub rows: usize,
    /// Examples made of them, those set aside for validation included.
    pub used: usize,
    /// Tokens of the used rows.
    pub tokens: usize,
    /// Trained tokens among them.
    pub trained_tokens: usize,
    /// Rows equal to an earlier row.
    pub duplicates: usize,
    /// Whether duplicates were left out.
    pub duplicates_dropped: bool,
    /// Rows left out because they are longer than the sequence length.
    pub dropped_too_long: usize,
    /// Rows cut at the sequence length and still used.
    pub truncated: usize,
    /// Rows left out because the cut took every trained token (or all that
    /// tells a pair's completions apart).
    pub dropped_cut_away: usize,
    /// Rows in which no message is to be trained on (`weight: 0` everywhere).
    pub dropped_untrained: usize,
    /// The first hundred rows that could not be used.
    pub bad_rows: Vec<BadRow>,
    /// How many there are in all.
    pub bad_row_count: usize,
    /// How many there are of each kind. Empty in reports that were written before
    /// rows were counted by kind.
    pub bad_row_kinds: BTreeMap<BadRowKind, usize>,
    /// Used rows in which some trained turn lacks its end-of-turn token.
    pub without_end_of_turn: usize,
    /// Tokens of the longest row before any cut, bad rows excepted.
    pub longest: usize,
    /// Three rows as the model will see them.
    pub samples: Vec<RenderedSample>,
    /// Examples set aside, or read from the validation file.
    pub validation_rows: usize,
    /// Their tokens.
    pub validation_tokens: usize,
    /// Their trained tokens.
    pub validation_trained_tokens: usize,
    /// Rows of a validation file that could not be used.
    pub validation_bad_rows: Vec<BadRow>,
    /// SHA-256 of the validation file, if one was given.
    pub validation_sha256: Option<String>,
    /// What the user should know but need not act on.
    pub warnings: Vec<String>,
}

impl DatasetReport {
    pub(crate) fn add_bad_row(&mut self, line: usize, error: &RowError) {
        self.bad_row_count += 1;
        *self.bad_row_kinds.entry(error.kind()).or_default() += 1;
        if self.bad_rows.len() < LISTED_BAD_ROWS {
            self.bad_rows.push(BadRow { line, reason: error.to_string() });
        }
    }
}
