//! What a chat template writes of a conversation, and what it leaves out.
//!
//! The same conversation is rendered with a marker in place of each text, thought, tool,
//! call and argument; what does not come back is left out. Templates go by a
//! conversation's shape and not by its words, so each shape is asked once.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};

use crate::message::Message;
use crate::row_error::RowError;
use crate::template::{ChatTemplate, Extras, REASONING_KEYS, message_value};

/// What a template leaves out of conversations of one shape.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LeftOut {
    /// The first message of which a text or a call does not come back, and which of the
    /// two.
    pub missing: Option<(usize, &'static str)>,
    /// Whether the thought of an answer before the last question does not come back.
    pub earlier_thought: bool,
    /// Whether reasoning under a key of its own does not come back.
    pub reasoning: bool,
    /// Whether no tool of the list comes back.
    pub tools: bool,
    /// What is written between an answer's header and its text, if the answer has no
    /// thought of its own.
    pub before_answer: Option<String>,
}

impl LeftOut {
    /// Why a row cannot be used, if it cannot.
    pub fn refusal(&self, messages: &[Message]) -> Option<RowError> {
        let (index, what) = self.missing?;
        let role = messages.get(index)?.role.clone();
        Some(RowError::NotRendered { what, number: index + 1, role })
    }
}

/// The answers by shape.
#[derive(Debug, Default)]
pub(crate) struct Shapes(Mutex<HashMap<u64, Arc<LeftOut>>>);

impl Shapes {
    /// What the template leaves out of this conversation. Nothing, if it refuses the
    /// markers: it took the words themselves.
    pub fn left_out(&self, template: &ChatTemplate, messages: &[Message], extras: &Extras) -> Arc<LeftOut> {
        let shape = shape(messages, extras);
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known().get(&shape) {
            return Arc::clone(found);
        }
        let found = Arc::new(ask(template, messages, extras).unwrap_or_default());
        known().insert(shape, Arc::clone(&found));
        found
    }
}

/// Whether the model's thought stands in a message's text.
pub(crate) fn has_thought(text: &str) -> bool {
    text.contains("</think>")
}

fn reasoning_key(message: &Message) -> Option<&'static str> {
    let has_text =
        |key: &&&str| message.extra.get(**key).and_then(Value::as_str).is_some_and(|text| !text.trim().is_empty());
    REASONING_KEYS.iter().find(has_text).copied()
}

fn calls(message: &Message) -> &[Value] {
    message.extra.get("tool_calls").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// A hash of everything that a template can go by, but the words.
fn shape(messages: &[Message], extras: &Extras) -> u64 {
    let mut hash = DefaultHasher::new();
    for message in messages {
        message.role.hash(&mut hash);
        (message.content.trim().is_empty(), has_thought(&message.content)).hash(&mut hash);
        (reasoning_key(message), calls(message).len(), message.is_trained()).hash(&mut hash);
        message.extra.keys().for_each(|key| key.hash(&mut hash));
    }
    (extras.tools.is_some(), extras.documents.is_some()).hash(&mut hash);
    Value::Object(extras.arguments.clone()).to_string().hash(&mut hash);
    hash.finish()
}

fn marker(kind: &str, index: usize, call: usize) -> String {
    format!("zQ{kind}{index}x{call}Qz")
}

/// The conversation with markers.
fn marked(messages: &[Message]) -> Vec<Message> {
    let mark = |(index, message): (usize, &Message)| {
        let mut message = message.clone();
        let text = marker("text", index, 0);
        message.content = match message.content.as_str() {
            content if content.trim().is_empty() => String::new(),
            content if has_thought(content) => format!("<think>\n{}\n</think>\n\n{text}", marker("thought", index, 0)),
            _ => text,
        };
        if let Some(key) = reasoning_key(&message) {
            message.extra.insert(key.to_owned(), marker("reason", index, 0).into());
        }
        let calls = message.extra.get_mut("tool_calls").and_then(Value::as_array_mut);
        for (call, value) in calls.into_iter().flatten().enumerate() {
            if let Some(function) = value.get_mut("function").and_then(Value::as_object_mut) {
                let argument = (marker("key", index, call), Value::from(marker("value", index, call)));
                function.insert("name".into(), marker("name", index, call).into());
                function.insert("arguments".into(), Value::Object(Map::from_iter([argument])));
            }
        }
        message
    };
    messages.iter().enumerate().map(mark).collect()
}

fn marked_tools(tools: &Value) -> Value {
    let mut tools = tools.clone();
    for (index, tool) in tools.as_array_mut().into_iter().flatten().enumerate() {
        let function = if tool.get("function").is_some() { tool.get_mut("function") } else { Some(tool) };
        if let Some(function) = function.and_then(Value::as_object_mut) {
            function.insert("name".into(), marker("tool", index, 0).into());
        }
    }
    tools
}

/// What stands between the header of answer `index` and its marker in `text`.
fn before_answer(
    template: &ChatTemplate,
    values: &[minijinja::Value],
    extras: &Extras,
    text: &str,
    index: usize,
) -> Option<String> {
    let header = template.render(values.get(..index)?, extras, true).ok()?;
    let behind = text.strip_prefix(&header)?;
    let before = behind.split(&marker("text", index, 0)).next()?.trim();
    // Another turn's text in between: the header stands elsewhere.
    let is_plain = !before.is_empty() && !before.contains("zQ");
    is_plain.then(|| before.to_owned())
}

/// Renders the markers; `None` if the template refuses them.
fn ask(template: &ChatTemplate, messages: &[Message], extras: &Extras) -> Option<LeftOut> {
    let values: Vec<_> = marked(messages).iter().map(message_value).collect();
    let tools = extras.tools.as_ref().map(marked_tools);
    let marked_extras = Extras { tools: tools.clone(), ..extras.clone() };
    let text = template.render(&values, &marked_extras, false).ok()?;
    let written = |kind: &str, index: usize, call: usize| text.contains(&marker(kind, index, call));
    let last_question = messages.iter().rposition(|message| message.role == "user").unwrap_or_default();
    let mut found = LeftOut::default();
    for (index, message) in messages.iter().enumerate() {
        let calls_written = (0..calls(message).len())
            .all(|call| ["name", "key", "value"].iter().all(|kind| written(kind, index, call)));
        let what = if !message.content.trim().is_empty() && !written("text", index, 0) {
            Some("the text")
        } else if !calls_written {
            Some("the tool call")
        } else {
            None
        };
        if found.missing.is_none() {
            found.missing = what.map(|what| (index, what));
        }
        let lost_thought = has_thought(&message.content) && !written("thought", index, 0);
        let lost_reasoning = reasoning_key(message).is_some() && !written("reason", index, 0);
        found.earlier_thought |= lost_thought || (lost_reasoning && index < last_question);
        found.reasoning |= lost_reasoning && index >= last_question;
        let is_bare = !has_thought(&message.content) && reasoning_key(message).is_none();
        if message.is_assistant()
            && message.is_trained()
            && is_bare
            && what.is_none()
            && !message.content.trim().is_empty()
        {
            let before = before_answer(template, &values, &marked_extras, &text, index);
            found.before_answer = found.before_answer.or(before);
        }
    }
    let count = tools.as_ref().and_then(Value::as_array).map_or(0, Vec::len);
    found.tools = count > 0 && !(0..count).any(|index| written("tool", index, 0));
    Some(found)
}
