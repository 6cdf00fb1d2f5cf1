//! Which of the known formats a row is in, and what it says in it.
//!
//! A format of rows is a [`Format`] in the file of its family and an entry of
//! [`FORMATS`]. Recognition, hints at misspelt keys, help and receipts read that
//! list.

mod calls;
mod chat;
mod content;
mod fields;
mod keys;
mod message;
mod preference;
mod prompt;
mod text;
mod tokens;

use finetuned_plugin_api::suggest::nearest;
use serde_json::{Map, Value};

use crate::example::DataKind;
use crate::row_error::{RowError, RowResult, UnknownFormat};
pub(crate) use content::{Content, Prompt};
pub(crate) use fields::kind_of;
pub(crate) use keys::is_harmless_in_messages;

/// The formats in order of precedence: a row is in the first one whose keys it has and
/// whose values it fits.
static FORMATS: &[&Format] = &[
    &tokens::PAIR_TOKENS,
    &tokens::LABELLED_TOKENS,
    &tokens::TOKENS,
    &preference::OPENAI_PAIRS,
    &preference::CHAT_PAIRS,
    &preference::PAIRS,
    &preference::IMPLICIT_PAIRS,
    &preference::LABELLED_CHAT,
    &preference::LABELLED,
    &preference::OUTPUT_PAIRS,
    &chat::MESSAGES,
    &chat::SHARE_GPT,
    &chat::INSTRUCTION,
    &chat::PROMPT_COMPLETION,
    &chat::QUESTION_ANSWER,
    &chat::INPUT_OUTPUT,
    &text::TEXT,
];

/// A row by its keys.
pub(crate) type Row = Map<String, Value>;

/// A format of rows.
#[derive(Debug)]
pub(crate) struct Format {
    /// Its name for people.
    pub name: &'static str,
    /// What its examples are.
    pub kind: DataKind,
    /// How its rows become tokens.
    pub layout: Layout,
    /// The keys that a row needs: of each group, one. The first of a group is its
    /// usual name.
    keys: &'static [&'static [&'static str]],
    /// Keys that it reads beside them.
    reads: &'static [&'static str],
    /// Keys whose lists of objects belong to one row: an object with one of them is
    /// a row and not a file of rows.
    lists: &'static [&'static str],
    /// Whether the values of a row that has the keys are of this format.
    fits: fn(&Row) -> bool,
    /// Reads a row that has the keys.
    read: fn(&Row) -> RowResult<Content>,
}

/// How the rows of a format become tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// They are token ids.
    Ids,
    /// One text with an end.
    Text,
    /// A prompt and what follows it: through the chat template if the model has one,
    /// else one text after the other.
    Completion,
    /// A conversation, through the chat template or the plain layout.
    Conversation,
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Format {
    /// The format of a row, by its keys and by what they hold.
    pub fn of(row: &Row) -> Option<&'static Self> {
        FORMATS.iter().find(|format| format.missing(row).is_none() && (format.fits)(row)).copied()
    }

    /// Whether a row has the format's keys.
    pub fn has_keys_of(&self, row: &Row) -> bool {
        self.missing(row).is_none()
    }

    /// What the row says. `columns` are the keys that the loss reads.
    ///
    /// # Errors
    /// Why it says nothing.
    pub fn read(&self, row: &Row, columns: &[String]) -> RowResult<Content> {
        let missing = self.missing(row);
        if missing.is_none() {
            keys::refuse_contradictions(self, row, columns)?;
            return (self.read)(row);
        }
        Err(match (Self::of(row), missing) {
            (Some(other), _) => RowError::OtherFormat { found: other.name, file: self.name, missing },
            (None, Some(key)) if row.contains_key(key) => RowError::value(key, "null", "a value"),
            (None, _) => unknown(row, missing),
        })
    }

    /// The keys of a row that nothing reads and that may hold something to learn.
    pub fn unused_keys(&self, row: &Row, columns: &[String]) -> Vec<String> {
        keys::unused(self, row, columns)
    }

    /// Whether a key is one that the format reads.
    fn reads(&self, key: &str) -> bool {
        self.reads.contains(&key) || self.keys.iter().any(|names| names.contains(&key))
    }

    /// The first key that the row lacks, by its usual name.
    fn missing(&self, row: &Row) -> Option<&'static str> {
        let lacks = |names: &&&[&'static str]| !names.iter().any(|name| given(row, name));
        self.keys.iter().find(lacks).and_then(|names| names.first()).copied()
    }
}

/// Whether a row has a key with another value than null.
fn given(row: &Row, key: &str) -> bool {
    row.get(key).is_some_and(|value| !value.is_null())
}

/// Keys whose lists of objects belong to one row of some format.
pub(crate) fn list_keys() -> Vec<&'static str> {
    FORMATS.iter().flat_map(|format| format.lists).copied().collect()
}

/// What rows need, as a sentence.
pub(crate) fn help() -> String {
    // The last formats of the list are the simplest.
    let mut alternatives: Vec<String> = Vec::new();
    for written in FORMATS.iter().rev().map(|format| written(format.keys)) {
        if !alternatives.contains(&written) {
            alternatives.push(written);
        }
    }
    format!("Rows need {}.", alternatives.join("; or "))
}

/// The usual names of keys: "`a`, `b` and `c`".
fn written(keys: &[&[&str]]) -> String {
    let names: Vec<String> = keys.iter().filter_map(|names| names.first()).map(|name| format!("`{name}`")).collect();
    match names.as_slice() {
        [before @ .., last] if !before.is_empty() => format!("{} and {last}", before.join(", ")),
        _ => names.concat(),
    }
}

/// Why a row is in no format. `missing` is the first key of the file's format that
/// it lacks.
pub(crate) fn unknown(row: &Row, missing: Option<&'static str>) -> RowError {
    if row.is_empty() {
        return RowError::NoKeys;
    }
    let known = || FORMATS.iter().flat_map(|format| format.keys.iter().copied().flatten().chain(format.reads)).copied();
    let slip = row
        .keys()
        .filter(|key| !known().any(|known| known == key.as_str()))
        .find_map(|key| nearest(key, known()).map(|known| (key.clone(), known)));
    let prompt = prompt::QUESTIONS.iter().find(|key| row.contains_key(**key)).copied();
    RowError::UnknownFormat(Box::new(UnknownFormat { keys: row.keys().cloned().collect(), missing, slip, prompt }))
}

#[cfg(test)]
mod tests;
