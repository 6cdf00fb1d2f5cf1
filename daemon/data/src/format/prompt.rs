//! What comes before an answer in a row of one question: a system text, earlier turns,
//! the question, and a passage that it is about.

use serde_json::{Map, Value};

use super::calls::tools;
use super::fields::kind_of;
use super::message::messages;
use super::{Prompt, Row};
use crate::json::json;
use crate::message::Message;
use crate::row_error::{RowError, RowResult};
use crate::template::Extras;

/// Keys of a question, in order of precedence.
pub(super) const QUESTIONS: &[&str] = &["prompt", "question", "instruction", "query"];

/// Keys of a text that the question is about: Alpaca's `input`, Dolly's `context`.
/// Each that is there follows the question after a blank line.
pub(super) const PASSAGES: &[&str] = &["input", "context", "passage", "knowledge"];

/// Keys of a system text.
pub(super) const SYSTEMS: &[&str] = &["system", "system_prompt", "system_message"];

/// What a row of one question reads beside its question and answer.
pub(super) const READS: &[&str] = &[
    "input",
    "context",
    "passage",
    "knowledge",
    "system",
    "system_prompt",
    "system_message",
    "history",
    "tools",
    "functions",
    "documents",
    "chat_template_kwargs",
];

/// The text at `key`; nothing if it is absent or null.
fn optional<'r>(row: &'r Row, key: &str) -> RowResult<&'r str> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(RowError::not_a_text(key, kind_of(other))),
    }
}

/// The row's system text as a message.
///
/// # Errors
/// It is no text.
pub(super) fn system_of(row: &Row) -> RowResult<Option<Message>> {
    for key in SYSTEMS {
        let text = optional(row, key)?;
        if !text.trim().is_empty() {
            return Ok(Some(Message::system(text)));
        }
    }
    Ok(None)
}

/// Puts the row's system text before messages that have none.
pub(super) fn with_system(row: &Row, mut messages: Vec<Message>) -> RowResult<Vec<Message>> {
    if messages.first().is_none_or(|first| first.role != "system")
        && let Some(system) = system_of(row)?
    {
        messages.insert(0, system);
    }
    Ok(messages)
}

/// Earlier turns: a list of pairs of a question and an answer, or of messages.
fn history_of(row: &Row) -> RowResult<Vec<Message>> {
    const EXPECTED: &str = "a list of [question, answer] or of messages";
    let items = match row.get("history") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(RowError::value("history", kind_of(other), EXPECTED)),
    };
    if items.iter().all(Value::is_object) {
        return messages(items, "history");
    }
    let mut turns = Vec::new();
    for item in items {
        let pair = item.as_array().map(Vec::as_slice);
        let Some([Value::String(question), Value::String(answer)]) = pair else {
            return Err(RowError::value("history", "a list with something else", EXPECTED));
        };
        turns.extend([Message::user(question), Message::assistant(answer)]);
    }
    Ok(turns)
}

/// The row's first passage key with a text.
fn passage_key(row: &Row, question: &str) -> Option<&'static str> {
    PASSAGES.iter().filter(|key| **key != question).find(|key| super::keys::is_given(row, key)).copied()
}

/// The question at `key`, with the passages behind it.
///
/// # Errors
/// A part that is no text; all are empty.
fn question_of(row: &Row, key: &str) -> RowResult<String> {
    let mut parts = vec![optional(row, key)?];
    for passage in PASSAGES.iter().filter(|passage| **passage != key) {
        parts.push(optional(row, passage)?);
    }
    parts.retain(|part| !part.trim().is_empty());
    if parts.is_empty() {
        return Err(RowError::empty(key));
    }
    Ok(parts.join("\n\n"))
}

/// What comes before the answer; `keys` are those of the question. A text that stands
/// alone stays a text.
///
/// # Errors
/// A part that is no text or no message; no question.
pub(super) fn prompt_of(row: &Row, keys: &[&str]) -> RowResult<Prompt> {
    let key = keys.iter().find(|key| super::given(row, key)).or(keys.first()).copied().unwrap_or_default();
    if let Some(Value::Array(items)) = row.get(key) {
        if let Some(passage) = passage_key(row, key) {
            return Err(RowError::NoPlace { key: passage, beside: key.to_owned() });
        }
        let history = history_of(row)?;
        let all = [history, messages(items, key)?].concat();
        return Ok(Prompt::Messages(with_system(row, all)?));
    }
    let question = question_of(row, key)?;
    let (system, mut before) = (system_of(row)?, history_of(row)?);
    if system.is_none() && before.is_empty() {
        return Ok(Prompt::Text(question));
    }
    before.push(Message::user(question));
    Ok(Prompt::Messages(system.into_iter().chain(before).collect()))
}

/// What a row brings for the template beside messages.
pub(super) fn extras(row: &Row) -> RowResult<Extras> {
    let documents = match row.get("documents") {
        None | Some(Value::Null) => None,
        Some(Value::Array(items)) if items.is_empty() => None,
        Some(Value::Array(items)) => Some(Value::Array(items.clone())),
        Some(Value::String(text)) if text.trim().is_empty() => None,
        Some(Value::String(text)) => match json(text) {
            Ok(list @ Value::Array(_)) => Some(list),
            _ => return Err(RowError::NotAJsonList("documents")),
        },
        Some(other) => return Err(RowError::value("documents", kind_of(other), "a list")),
    };
    let arguments = match row.get("chat_template_kwargs") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(map)) => map.clone(),
        Some(other) => return Err(RowError::value("chat_template_kwargs", kind_of(other), "an object")),
    };
    Ok(Extras { tools: tools(row)?, documents, arguments })
}
