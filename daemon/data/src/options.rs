//! The choices of a dataset's preparation.

use serde::{Deserialize, Serialize};
use strum::VariantNames;

use crate::error::{DataError, Result};

/// What happens to a row with more tokens than the sequence length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, VariantNames)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum TooLong {
    /// The row is left out and counted.
    #[default]
    Drop,
    /// The row's end is cut off, and the row counted. A row that loses every
    /// trained token is left out.
    Truncate,
    /// The whole dataset is refused.
    Refuse,
}

/// Which tokens are targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, VariantNames)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum TrainOn {
    /// What the assistant wrote, its end-of-turn token included.
    #[default]
    Assistant,
    /// Every token of a row but the first.
    All,
}

/// The sequence length of a run whose recipe names none, in tokens.
pub const DEFAULT_SEQUENCE_LENGTH: usize = 1024;

/// How to turn a file into examples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataOptions {
    /// Most tokens an example may have.
    pub sequence_length: usize,
    /// What happens to longer rows.
    pub too_long: TooLong,
    /// Share of the rows that become validation rows, 0 ≤ f < 1. Unused with a
    /// validation file.
    pub validation_fraction: f64,
    /// Decides which rows become validation rows.
    pub seed: u64,
    /// Which tokens are targets.
    pub train_on: TrainOn,
    /// Most good rows that are used, from the start of the file.
    pub max_rows: Option<usize>,
    /// Whether rows equal to an earlier one are left out. They are counted either way.
    pub drop_duplicates: bool,
    /// Rows of the model's embedding. Tokenised rows with a greater id are bad
    /// rows. `None` trusts the ids.
    pub vocab_size: Option<usize>,
    /// Most tokens of a row that the model was made for. Longer rows are counted.
    /// `None`: not known.
    pub context: Option<usize>,
    /// Columns of numbers that a loss asks for, by name. A row without one of
    /// them is a bad row.
    pub columns: Vec<String>,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            sequence_length: DEFAULT_SEQUENCE_LENGTH,
            too_long: TooLong::Drop,
            validation_fraction: 0.0,
            seed: 0,
            train_on: TrainOn::Assistant,
            max_rows: None,
            drop_duplicates: false,
            vocab_size: None,
            context: None,
            columns: Vec::new(),
        }
    }
}

impl DataOptions {
    /// # Errors
    /// [`DataError::Option`] for a sequence length below 2 (nothing could be
    /// predicted) or a fraction outside `[0, 1)`.
    pub fn check(&self) -> Result<()> {
        if self.sequence_length < 2 {
            return Err(DataError::Option {
                option: "train.sequence_length",
                expected: "at least 2 tokens",
                got: self.sequence_length.to_string(),
            });
        }
        if !(0.0..1.0).contains(&self.validation_fraction) {
            return Err(DataError::Option {
                option: "train.validation_fraction",
                expected: "a number from 0 up to but not including 1",
                got: self.validation_fraction.to_string(),
            });
        }
        Ok(())
    }
}
