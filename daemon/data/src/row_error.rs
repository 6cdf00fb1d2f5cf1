//! Why a single row cannot be used.

/// Why a row cannot be used; its text is the reason in a [`crate::BadRow`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The row has more bytes than are read at once.
    #[error("the row is larger than {} MiB", .limit >> 20)]
    TooLarge {
        /// Most bytes of a row.
        limit: usize,
    },
    /// The file ends inside its last line.
    #[error("the line is cut off: the file looks incomplete")]
    LineCutOff,
    /// The file ends inside its list of rows.
    #[error("the file ends inside the list: it looks incomplete")]
    ListCutOff,
    /// Bytes that are not text.
    #[error("not UTF-8: byte 0x{byte:02x} at {at}")]
    NotUtf8 {
        /// The first such byte.
        byte: u8,
        /// Its place in the row.
        at: String,
    },
    /// Text that is not JSON.
    #[error("not JSON: {problem} at {at}")]
    NotJson {
        /// What the parser said.
        problem: String,
        /// Where in the row.
        at: String,
    },
    /// A JSON value, but no object.
    #[error("expected a JSON object, got {got}")]
    NotAnObject {
        /// What it is, in words.
        got: &'static str,
    },
    /// The row is in no known format; the text names its keys, and the key that
    /// is missing or misspelt.
    #[error("{0}")]
    UnknownFormat(String),
    /// The row is in another format than the file.
    #[error("the row is {found}, the file is {file}{}", missing_key(.missing))]
    OtherFormat {
        /// Name of the row's format.
        found: &'static str,
        /// Name of the file's format.
        file: &'static str,
        /// The first key of the file's format that the row lacks.
        missing: Option<&'static str>,
    },
    /// A key that the row lacks.
    #[error("`{key}` is missing")]
    Missing {
        /// The key.
        key: String,
    },
    /// A text or a list without content.
    #[error("`{key}` is empty")]
    Empty {
        /// The key.
        key: String,
    },
    /// A value of the wrong type or out of its range.
    #[error("`{key}` is {got}: expected {expected}")]
    Value {
        /// The key, perhaps with an index.
        key: String,
        /// The value, or what it is.
        got: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A message of a list that cannot be used.
    #[error("`{key}`: message {number}: {source}")]
    Message {
        /// The list.
        key: String,
        /// The message's number, from 1.
        number: usize,
        /// What is wrong with it.
        source: Box<RowError>,
    },
    /// A token id that the model does not have.
    #[error("token id {id} is not in the model's vocabulary of {size}")]
    Vocabulary {
        /// The id.
        id: u32,
        /// Rows of the model's embedding.
        size: usize,
    },
    /// The row contradicts itself or its format; the text says how.
    #[error("{0}")]
    Malformed(String),
    /// The row is well formed and there is nothing to learn from it; the text
    /// says why.
    #[error("{0}")]
    NothingToLearn(String),
    /// The tokenizer or the chat template refused the row.
    #[error("{0}")]
    Rendering(String),
}

pub(crate) fn missing_key(key: &Option<&'static str>) -> String {
    key.map(|key| format!(": `{key}` is missing")).unwrap_or_default()
}

impl RowError {
    pub(crate) fn missing(key: &str) -> Self {
        Self::Missing { key: key.into() }
    }

    pub(crate) fn empty(key: &str) -> Self {
        Self::Empty { key: key.into() }
    }

    pub(crate) fn value(key: impl Into<String>, got: impl ToString, expected: &'static str) -> Self {
        Self::Value { key: key.into(), got: got.to_string(), expected }
    }

    pub(crate) fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed(reason.into())
    }

    pub(crate) fn nothing_to_learn(reason: impl Into<String>) -> Self {
        Self::NothingToLearn(reason.into())
    }
}
