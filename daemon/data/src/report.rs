//! What was found in a dataset: counts, bad rows, and three rows to look at.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::notes::rows;
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

/// How the rows of a file add up: `rows` is the sum of the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RowCounts {
    /// Rows that were read; blank lines are no rows.
    pub rows: usize,
    /// Examples made of them.
    pub used: usize,
    /// Rows that cannot be used.
    pub bad: usize,
    /// Rows left out because they are longer than the sequence length.
    pub too_long: usize,
    /// Rows left out because the cut at the sequence length took all that they teach.
    pub cut_away: usize,
    /// Rows in which no message is to be trained on.
    pub untrained: usize,
    /// Rows left out because they are equal to an earlier one.
    pub duplicates: usize,
}

impl RowCounts {
    /// Rows that are left out, for any reason.
    pub fn left_out(&self) -> usize {
        self.bad + self.too_long + self.cut_away + self.untrained + self.duplicates
    }
}

impl fmt::Display for RowCounts {
    /// `6 rows: 3 used, 3 left out (2 bad, 1 too long)`.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {} used", rows(self.rows), self.used)?;
        let reasons = [
            (self.bad, "bad"),
            (self.too_long, "too long"),
            (self.cut_away, "cut away"),
            (self.untrained, "without a message to train on"),
            (self.duplicates, "equal to an earlier one"),
        ];
        let given: Vec<String> =
            reasons.iter().filter(|(count, _)| *count > 0).map(|(count, why)| format!("{count} {why}")).collect();
        match given.is_empty() {
            true => Ok(()),
            false => write!(f, ", {} left out ({})", self.left_out(), given.join(", ")),
        }
    }
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
    /// Tokens of the rows that are too long: of those left out and cut away all, of
    /// those truncated what the cut takes.
    pub tokens_left_out: usize,
    /// Whether rows far longer than the sequence length were left out without being
    /// counted. They add their least number of tokens.
    pub is_uncounted: bool,
    /// Keys of the used rows that nothing reads, with the number of rows that have a
    /// value there. Keys that only say where a row comes from are not counted.
    pub unused_keys: BTreeMap<String, usize>,
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
    /// How the rows of the validation file add up, if one was given.
    pub validation_counts: Option<RowCounts>,
    /// Rows of a validation file that could not be used.
    pub validation_bad_rows: Vec<BadRow>,
    /// SHA-256 of the validation file, if one was given.
    pub validation_sha256: Option<String>,
    /// What the user should know but need not act on.
    pub warnings: Vec<String>,
}

impl DatasetReport {
    /// How the rows add up.
    pub fn row_counts(&self) -> RowCounts {
        RowCounts {
            rows: self.rows,
            used: self.used,
            bad: self.bad_row_count,
            too_long: self.dropped_too_long,
            cut_away: self.dropped_cut_away,
            untrained: self.dropped_untrained,
            duplicates: if self.duplicates_dropped { self.duplicates } else { 0 },
        }
    }

    pub(crate) fn add_bad_row(&mut self, line: usize, error: &RowError) {
        self.bad_row_count += 1;
        *self.bad_row_kinds.entry(error.kind()).or_default() += 1;
        if self.bad_rows.len() < LISTED_BAD_ROWS {
            self.bad_rows.push(BadRow { line, reason: error.to_string() });
        }
    }
}
