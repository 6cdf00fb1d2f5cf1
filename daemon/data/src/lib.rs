//! Datasets: from a file of rows to token ids with their targets marked.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod error;
mod example;
mod message;
mod options;
mod order;
mod prepare;
mod python;
mod report;
mod template;
mod tokenizer;
#[allow(missing_docs)]
mod tokenizer_source;

pub use error::DataError;
pub use example::{Example, Examples, LabelledExample, PairExample};
pub use message::Message;
pub use options::{DataOptions, TooLong, TrainOn};
pub use order::{Row, epoch_rows, permutation};
pub use prepare::{Prepared, prepare};
pub use report::{BadRow, DatasetReport, LISTED_BAD_ROWS, RenderedSample};
pub use template::{DEFAULT_NOW, PLAIN_TEMPLATE};
pub use tokenizer::{ChatTokenizer, StreamDecoder};
pub use tokenizer_source::TokenizerSource;
