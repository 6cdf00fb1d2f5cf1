//! Datasets: from a file of rows to token ids with the trained ones marked.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod columns;
mod encode;
mod error;
mod example;
mod format;
mod intake;
mod json;
mod look;
mod message;
mod notes;
mod options;
mod order;
mod prepare;
mod python;
mod renders;
mod report;
mod row_error;
mod rows;
mod spans;
mod split;
mod template;
#[cfg(test)]
mod testing;
mod tokenizer;

pub use error::DataError;
pub use example::{DataKind, Document, Example, Examples, Role};
pub use look::{Look, look};
pub use message::Message;
pub use options::{DEFAULT_SEQUENCE_LENGTH, DataOptions, TooLong, TrainOn};
pub use order::{Row, epoch_rows, permutation};
pub use prepare::{Prepared, prepare};
pub use report::{BadRow, DatasetReport, LISTED_BAD_ROWS, RenderedSample, RowCounts};
pub use row_error::BadRowKind;
pub use rows::{Foreign, dataset_ending, what_is, what_is_missing};
pub use template::{DEFAULT_NOW, PLAIN_TEMPLATE};
pub use tokenizer::{ChatTokenizer, StreamDecoder};
