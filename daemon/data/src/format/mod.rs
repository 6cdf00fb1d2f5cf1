//! Which of the known formats a row is in, and what it says in it.
//!
//! A format of rows is a [`Format`] in the file of its family and an entry of
//! [`FORMATS`]. Recognition, hints at misspelt keys, help and receipts read that
//! list.

mod chat;
mod content;
mod fields;
mod preference;
mod text;
mod tokens;

use finetuned_plugin_api::suggest::nearest;
use serde_json::{Map, Value};

use crate::example::DataKind;
use crate::row_error::{RowError, RowResult, UnknownFormat};
pub(crate) use content::{Content, Prompt};
pub(crate) use fields::kind_of;

/// The formats in order of precedence: a row is in the first one whose keys it has.
static FORMATS: &[&Format] = &[
    &tokens::PAIR_TOKENS,
    &tokens::LABELLED_TOKENS,
    &tokens::TOKENS,
    &preference::PAIRS,
    &preference::IMPLICIT_PAIRS,
    &preference::LABELLED,
    &chat::MESSAGES,
    &chat::SHARE_GPT,
    &chat::INSTRUCTION,
    &chat::PROMPT_COMPLETION,
    &chat::QUESTION_ANSWER,
    &text::TEXT,
];

/// A row by its keys.
pub(crate) type Row = Map<String, Value>;

/// The keys that a prompt may have where its answers tell the format.
const PROMPT_KEYS: &[&str] = &["prompt", "question", "instruction"];

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
    /// Keys that it reads beside them and that are worth a "did you mean".
    optional: &'static [&'static str],
    /// Keys whose lists of objects belong to one row: an object with one of them is
    /// a row and not a file of rows.
    lists: &'static [&'static str],
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
    /// The format of a row, by its keys.
    pub fn of(row: &Row) -> Option<&'static Self> {
        FORMATS.iter().find(|format| format.missing(row).is_none()).copied()
    }

    /// What the row says.
    ///
    /// # Errors
    /// Why it says nothing.
    pub fn read(&self, row: &Row) -> RowResult<Content> {
        let missing = self.missing(row);
        if missing.is_none() {
            return (self.read)(row);
        }
        Err(match Self::of(row) {
            Some(other) => RowError::OtherFormat { found: other.name, file: self.name, missing },
            None => unknown(row, missing),
        })
    }

    /// The first key that the row lacks, by its usual name.
    fn missing(&self, row: &Row) -> Option<&'static str> {
        let lacks = |names: &&&[&'static str]| !names.iter().any(|name| row.contains_key(*name));
        self.keys.iter().find(lacks).and_then(|names| names.first()).copied()
    }
}

/// Keys whose lists of objects belong to one row of some format.
pub(crate) fn list_keys() -> Vec<&'static str> {
    FORMATS.iter().flat_map(|format| format.lists).copied().collect()
}

/// What rows need, as a sentence.
pub(crate) fn help() -> String {
    // The last formats of the list are the simplest.
    let alternatives: Vec<String> = FORMATS.iter().rev().map(|format| written(format.keys)).collect();
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
    let known =
        || FORMATS.iter().flat_map(|format| format.keys.iter().copied().flatten().chain(format.optional)).copied();
    let slip = row
        .keys()
        .filter(|key| !known().any(|known| known == key.as_str()))
        .find_map(|key| nearest(key, known()).map(|known| (key.clone(), known)));
    let prompt = PROMPT_KEYS.iter().find(|key| row.contains_key(**key)).copied();
    RowError::UnknownFormat(Box::new(UnknownFormat { keys: row.keys().cloned().collect(), missing, slip, prompt }))
}

#[cfg(test)]
mod tests;
