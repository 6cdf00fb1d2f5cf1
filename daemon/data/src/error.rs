//! What can go wrong between a file and its token ids.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// An error that stops a whole dataset or tokenizer.
///
/// A single bad row is never one of these: it becomes a [`crate::BadRow`] in
/// the report, and the other rows go on.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file could not be opened or read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file as a whole cannot be used; `problem` says why, `remedy` what to do.
    #[error("{}: {problem}. {remedy}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, without a full stop.
        problem: String,
        /// What the user can do, a whole sentence.
        remedy: String,
    },
    /// A row is longer than the sequence length and the recipe says to refuse it.
    #[error(
        "{}, line {line}: the row is {tokens} tokens long, the sequence length is {limit}. \
         Raise train.sequence_length, or set the rows that are too long to be dropped or truncated",
        path.display()
    )]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Line of the row, from 1.
        line: usize,
        /// Length of the row in tokens.
        tokens: usize,
        /// The sequence length in tokens.
        limit: usize,
    },
    /// The tokenizer document could not be loaded.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template could not be compiled.
    #[error("chat template: {0}")]
    Template(String),
    /// The chat template could not render these messages, or refused them.
    #[error("{0}")]
    Render(String),
    /// An option has a value that makes no sense.
    #[error("{option} is {got}: expected {expected}")]
    Option {
        /// Name of the option as in a recipe.
        option: &'static str,
        /// What was expected.
        expected: &'static str,
        /// What was given.
        got: String,
    },
}

pub(crate) type Result<T, E = DataError> = std::result::Result<T, E>;

impl DataError {
    /// What a failed read of `path` means.
    pub(crate) fn reading(path: &Path) -> impl Fn(std::io::Error) -> Self + Copy + '_ {
        move |source| {
            let (problem, remedy) = match source.kind() {
                // Only the unpacker ends too early or finds bad data.
                ErrorKind::UnexpectedEof => {
                    ("the compressed file ends too early", "It looks incomplete: copy it again.")
                }
                ErrorKind::InvalidInput | ErrorKind::InvalidData => {
                    ("the compressed file is damaged", "Copy it again.")
                }
                _ => return Self::Read { path: path.to_owned(), source },
            };
            Self::File { path: path.to_owned(), problem: problem.into(), remedy: remedy.into() }
        }
    }
}
