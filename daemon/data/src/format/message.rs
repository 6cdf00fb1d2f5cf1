//! One message of a row, in every form that datasets give it.

use finetuned_plugin_api::suggest::nearest;
use serde_json::{Map, Value};

use super::Row;
use super::calls::calls;
use super::fields::{flag, kind_of, string, weight};
use crate::message::Message;
use crate::row_error::{RowError, RowResult};

const ROLES: &[&str] = &["system", "user", "assistant", "tool"];

/// Names of roles, in lower case, by what they mean. A `call` is the assistant's, and
/// its text is JSON of calls.
const NAMES: &[(&str, &[&str])] = &[
    ("system", &["system", "developer"]),
    ("user", &["user", "human", "prompter"]),
    ("assistant", &["assistant", "ai", "bard", "bing", "bot", "chatgpt", "gpt", "model"]),
    ("tool", &["function", "function_response", "ipython", "observation", "tool", "tool_response"]),
    ("call", &["function_call", "tool_call"]),
];

/// What a role's name means, whatever its case.
fn role(name: &str) -> RowResult<&'static str> {
    let plain = name.trim().to_lowercase();
    let known = NAMES.iter().find(|(_, names)| names.contains(&plain.as_str()));
    known.map(|(role, _)| *role).ok_or_else(|| {
        let meant = nearest(&plain, ROLES.iter().copied());
        RowError::UnknownRole { role: name.to_owned(), meant, known: ROLES }
    })
}

/// A message's text: a string, nothing, or parts of type text.
fn text(value: Option<&Value>, name: &str) -> RowResult<String> {
    match value {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => {
            let mut all = String::new();
            for part in parts {
                match (part, part.get("text")) {
                    (Value::String(text), _) | (_, Some(Value::String(text))) => all += text,
                    _ => {
                        let kind = part.get("type").and_then(Value::as_str).unwrap_or("unknown");
                        return Err(RowError::NotText { key: name.to_owned(), kind: kind.to_owned() });
                    }
                }
            }
            Ok(all)
        }
        Some(other) => Err(RowError::not_a_text(name, kind_of(other))),
    }
}

/// A message that has not this key, perhaps because of a slip.
fn lacks(message: &Row, key: &'static str) -> RowError {
    let meant = message.keys().find(|other| nearest(other, [key]).is_some()).cloned();
    RowError::MessageLacks { key, meant }
}

/// The keys of a call that stand in a message.
const CALL_KEYS: [&str; 2] = ["tool_calls", "function_call"];

/// The keys that say whether a message is trained.
const TRAIN_KEYS: [&str; 3] = ["train", "training", "trainable"];

/// One message of `role` and `content`, or of `from` and `value`.
fn message(value: &Value) -> RowResult<Message> {
    let Value::Object(map) = value else {
        return Err(RowError::NotAMessage(kind_of(value)));
    };
    let role_key = if map.contains_key("role") { "role" } else { "from" };
    let text_key = ["content", "value", "text"].into_iter().find(|key| map.contains_key(*key));
    if !map.contains_key(role_key) {
        return Err(lacks(map, "role"));
    }
    let given = |key: &str| map.get(key).filter(|value| !value.is_null());
    if text_key.is_none() && !CALL_KEYS.iter().any(|key| given(key).is_some()) {
        return Err(lacks(map, "content"));
    }
    let mut role = role(string(map, role_key)?)?;
    let mut content = text(text_key.and_then(|key| map.get(key)), text_key.unwrap_or("content"))?;
    let mut made = Vec::new();
    for key in CALL_KEYS {
        made.extend(calls(map.get(key).unwrap_or(&Value::Null), key)?);
    }
    if role == "call" {
        role = "assistant";
        made.extend(calls(&Value::String(std::mem::take(&mut content)), "function_call")?);
    }
    let mut message = Message { extra: Map::new(), ..Message::new(role, content) };
    if let Some(value) = given("weight") {
        message.weight = weight(value, "weight")?;
    }
    for key in TRAIN_KEYS {
        if let Some(value) = given(key)
            && !flag(value, key)?
        {
            message.weight = 0.0;
        }
    }
    if given("train_detail").is_some() {
        return Err(RowError::RowMask("train_detail"));
    }
    for (key, value) in map {
        let is_read = [role_key, "weight"].contains(&key.as_str())
            || Some(key.as_str()) == text_key
            || TRAIN_KEYS.contains(&key.as_str())
            || CALL_KEYS.contains(&key.as_str());
        if !is_read && !value.is_null() {
            message.extra.insert(key.clone(), value.clone());
        }
    }
    let is_empty = message.content.trim().is_empty() && made.is_empty();
    if !made.is_empty() {
        message.extra.insert("tool_calls".into(), Value::Array(made));
    }
    if message.is_assistant() && is_empty {
        return Err(RowError::EmptyAnswer);
    }
    Ok(message)
}

/// A list of messages; errors name the message by its number.
pub(super) fn messages(items: &[Value], key: &str) -> RowResult<Vec<Message>> {
    let read = |(index, item)| {
        let named = |source| RowError::Message { key: key.to_owned(), number: index + 1, source: Box::new(source) };
        message(item).map_err(named)
    };
    items.iter().enumerate().map(read).collect()
}

/// # Errors
/// If no message is the assistant's.
pub(super) fn with_answer(messages: Vec<Message>, key: &str) -> RowResult<Vec<Message>> {
    if messages.is_empty() {
        return Err(RowError::empty(key));
    }
    if !messages.iter().any(Message::is_assistant) {
        return Err(RowError::NoAssistant(key.to_owned()));
    }
    Ok(messages)
}
