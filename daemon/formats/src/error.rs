//! What can go wrong with a model's files, said so that the user can act on it.

use std::io;
use std::path::{Path, PathBuf};

use crate::families::supported_model_types;

/// An error of reading or writing model files.
///
/// Every variant names the file; the message says what was found, what was
/// expected, and if it helps, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// A verb phrase: "read", "open", "write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk (or the user's quota) is full. Kept apart because a daemon
    /// pauses a job for this and fails it for anything else.
    #[error("no space left on the disk while writing {}: free some space and try again", path.display())]
    NoSpace {
        /// The file being written.
        path: PathBuf,
    },
    /// Something that has to be there is not.
    #[error("{}: {what} is missing; {remedy}", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// What was looked for.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// The file contradicts itself or its format: cut off, overwritten, or hostile.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A setting whose value this program cannot use.
    #[error("{}: {key} is {got}, expected {expected}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The key, as the file spells it.
        key: String,
        /// What the program can use.
        expected: String,
        /// What the file says.
        got: String,
    },
    /// A model family without a decoder here.
    #[error("{}: model type {model_type:?} is not supported; supported are: {}", path.display(), supported_model_types())]
    UnsupportedModel {
        /// The file that names it.
        path: PathBuf,
        /// The name found.
        model_type: String,
    },
    /// A rotary-embedding scaling that is not implemented.
    #[error("{}: rope scaling {kind:?} is not supported; supported are: default, linear, llama3", path.display())]
    UnsupportedRope {
        /// The file that names it.
        path: PathBuf,
        /// `yarn`, `longrope`, `dynamic`, ...
        kind: String,
    },
    /// Anything else that the format allows and this program does not do.
    #[error("{}: {what} is not supported; {remedy}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The feature.
        what: String,
        /// What to do instead.
        remedy: String,
    },
    /// A tensor was asked for that the checkpoint does not hold.
    #[error("{} holds no tensor {name:?}", path.display())]
    NoSuchTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The canonical name asked for.
        name: String,
    },
    /// A caller's buffer or shape does not fit a tensor.
    #[error("{op} of tensor {name:?}: expected {expected}, got {got}")]
    Shape {
        /// "read" or "write".
        op: &'static str,
        /// The tensor.
        name: String,
        /// The right size or shape.
        expected: String,
        /// The one given.
        got: String,
    },
}

impl FormatError {
    /// Wraps an I/O error, telling a full disk apart from everything else.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> FormatError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                FormatError::NoSpace { path: path.to_path_buf() }
            }
            _ => FormatError::Io { action, path: path.to_path_buf(), source },
        }
    }

    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> FormatError {
        FormatError::Damaged { path: path.to_path_buf(), reason: reason.into() }
    }

    pub(crate) fn missing(path: &Path, what: impl Into<String>, remedy: impl Into<String>) -> FormatError {
        FormatError::Missing { path: path.to_path_buf(), what: what.into(), remedy: remedy.into() }
    }

    pub(crate) fn setting(
        path: &Path,
        key: impl Into<String>,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> FormatError {
        FormatError::Setting { path: path.to_path_buf(), key: key.into(), expected: expected.into(), got: got.into() }
    }

    pub(crate) fn unsupported(path: &Path, what: impl Into<String>, remedy: impl Into<String>) -> FormatError {
        FormatError::Unsupported { path: path.to_path_buf(), what: what.into(), remedy: remedy.into() }
    }

    /// Whether the disk was full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, FormatError::NoSpace { .. })
    }
}
