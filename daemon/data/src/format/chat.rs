//! Conversations: `messages`, ShareGPT, and the formats with one question.

use finetuned_plugin_api::suggest::nearest;
use serde_json::Value;

use super::fields::{extras, flag, kind_of, list, string, string_of, weight};
use super::{Content, Format, Layout, Row};
use crate::example::DataKind;
use crate::message::Message;
use crate::row_error::{RowError, RowResult};

/// What the formats of this file have in common.
const CONVERSATION: Format = Format {
    name: "",
    kind: DataKind::Supervised,
    layout: Layout::Conversation,
    keys: &[],
    optional: &[],
    lists: &[],
    read: messages_row,
};

/// `messages`: a list of `role` and `content`.
pub(super) static MESSAGES: Format =
    Format { name: "chat messages", keys: &[&["messages"]], lists: &["messages", "tools"], ..CONVERSATION };

/// `conversations`: a list of `from` and `value`.
pub(super) static SHARE_GPT: Format = Format {
    name: "ShareGPT conversations",
    keys: &[&["conversations", "conversation"]],
    lists: &["conversations", "conversation"],
    read: sharegpt_row,
    ..CONVERSATION
};

/// `instruction`, perhaps `input`, and `output` (or `response`).
pub(super) static INSTRUCTION: Format = Format {
    name: "instruction/output",
    keys: &[&["instruction"], &["output", "response"]],
    optional: &["input"],
    read: instruction_row,
    ..CONVERSATION
};

/// `prompt` and `completion` (or `response`), texts or lists of messages.
pub(super) static PROMPT_COMPLETION: Format = Format {
    name: "prompt/completion",
    layout: Layout::Completion,
    keys: &[&["prompt"], &["completion", "response"]],
    lists: &["prompt", "completion"],
    read: completion_row,
    ..CONVERSATION
};

/// `question` and `answer`.
pub(super) static QUESTION_ANSWER: Format =
    Format { name: "question/answer", keys: &[&["question"], &["answer"]], read: question_row, ..CONVERSATION };

const ROLES: &[&str] = &["system", "user", "assistant", "tool"];

/// Roles by the names that datasets give them.
fn role(name: &str) -> RowResult<&'static str> {
    Ok(match name {
        "system" | "developer" => "system",
        "user" | "human" | "prompter" => "user",
        "assistant" | "gpt" | "chatgpt" | "bing" | "bard" | "model" | "bot" => "assistant",
        "tool" | "function" | "observation" | "ipython" | "function_response" | "tool_response" => "tool",
        "function_call" | "tool_call" => "assistant",
        other => {
            let meant = nearest(other, ROLES.iter().copied());
            return Err(RowError::UnknownRole { role: other.to_owned(), meant, known: ROLES });
        }
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
        Some(other) => Err(RowError::value(name, kind_of(other), "a string")),
    }
}

/// A message that has not this key, perhaps because of a slip.
fn lacks(message: &Row, key: &'static str) -> RowError {
    let meant = message.keys().find(|other| nearest(other, [key]).is_some()).cloned();
    RowError::MessageLacks { key, meant }
}

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
    let calls = map.get("tool_calls").is_some_and(|calls| !calls.is_null());
    if text_key.is_none() && !calls {
        return Err(lacks(map, "content"));
    }
    let role = role(string(map, role_key)?)?;
    let mut message = Message::new(role, text(text_key.and_then(|key| map.get(key)), text_key.unwrap_or("content"))?);
    let given = |key: &str| map.get(key).filter(|value| !value.is_null());
    if let Some(value) = given("weight") {
        message.weight = weight(value, "weight")?;
    }
    if let Some(value) = given("train")
        && !flag(value, "train")?
    {
        message.weight = 0.0;
    }
    for (key, value) in map {
        let known = [role_key, "train", "weight"].contains(&key.as_str()) || Some(key.as_str()) == text_key;
        if !known && !value.is_null() {
            message.extra.insert(key.clone(), value.clone());
        }
    }
    if let Some(calls) = message.extra.get_mut("tool_calls") {
        unpack_arguments(calls);
    }
    if message.is_assistant() && message.content.trim().is_empty() && !calls {
        return Err(RowError::EmptyAnswer);
    }
    Ok(message)
}

/// The OpenAI format keeps a call's arguments as a string of JSON; templates
/// expect an object and would write the string's quotes and escapes.
fn unpack_arguments(calls: &mut Value) {
    for call in calls.as_array_mut().into_iter().flatten() {
        let function = match call.get("function") {
            Some(_) => call.get_mut("function"),
            None => Some(call),
        };
        let Some(arguments) = function.and_then(|function| function.get_mut("arguments")) else {
            continue;
        };
        if let Some(Ok(object @ Value::Object(_))) = arguments.as_str().map(serde_json::from_str) {
            *arguments = object;
        }
    }
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
fn with_answer(messages: Vec<Message>, key: &str) -> RowResult<Vec<Message>> {
    if messages.is_empty() {
        return Err(RowError::empty(key));
    }
    if !messages.iter().any(Message::is_assistant) {
        return Err(RowError::NoAssistant(key.to_owned()));
    }
    Ok(messages)
}

fn messages_row(row: &Row) -> RowResult<Content> {
    conversation(row, "messages")
}

fn conversation(row: &Row, key: &str) -> RowResult<Content> {
    let mut messages = with_answer(messages(list(row, key)?, key)?, key)?;
    if let Some(Value::String(system)) = row.get("system")
        && !system.is_empty()
        && messages[0].role != "system"
    {
        messages.insert(0, Message::system(system.clone()));
    }
    Ok(Content::Chat { messages, extras: extras(row)? })
}

fn sharegpt_row(row: &Row) -> RowResult<Content> {
    let key = if row.contains_key("conversations") { "conversations" } else { "conversation" };
    conversation(row, key)
}

/// `system`, where a row of one question has it.
pub(super) fn system_of(row: &Row) -> Option<Message> {
    match row.get("system") {
        Some(Value::String(system)) if !system.trim().is_empty() => Some(Message::system(system.clone())),
        _ => None,
    }
}

fn instruction_row(row: &Row) -> RowResult<Content> {
    let (answer, key) = string_of(row, &["output", "response"])?;
    if answer.trim().is_empty() {
        return Err(RowError::empty(key));
    }
    let mut question = string(row, "instruction")?.to_owned();
    if let Some(input) = row.get("input").filter(|input| !input.is_null()) {
        let Value::String(input) = input else {
            return Err(RowError::value("input", kind_of(input), "a string"));
        };
        if !input.trim().is_empty() {
            question = if question.is_empty() { input.clone() } else { format!("{question}\n\n{input}") };
        }
    }
    if question.trim().is_empty() {
        return Err(RowError::empty("instruction"));
    }
    let mut messages: Vec<Message> = system_of(row).into_iter().collect();
    messages.extend([Message::user(question), Message::assistant(answer)]);
    Ok(Content::Chat { messages, extras: extras(row)? })
}

fn question_row(row: &Row) -> RowResult<Content> {
    let (question, answer) = (string(row, "question")?, string(row, "answer")?);
    if question.trim().is_empty() {
        return Err(RowError::empty("question"));
    }
    if answer.trim().is_empty() {
        return Err(RowError::empty("answer"));
    }
    let mut messages: Vec<Message> = system_of(row).into_iter().collect();
    messages.extend([Message::user(question), Message::assistant(answer)]);
    Ok(Content::Chat { messages, extras: extras(row)? })
}

fn completion_row(row: &Row) -> RowResult<Content> {
    let key = if row.contains_key("completion") { "completion" } else { "response" };
    match (row.get("prompt"), row.get(key)) {
        (Some(Value::Array(prompt)), Some(Value::Array(completion))) => {
            // Of a conversation cut in two, only the second part is learned.
            let mut all = messages(prompt, "prompt")?;
            for message in &mut all {
                message.weight = 0.0;
            }
            all.extend(with_answer(messages(completion, key)?, key)?);
            Ok(Content::Chat { messages: all, extras: extras(row)? })
        }
        (Some(Value::Array(prompt)), Some(Value::String(completion))) => {
            let mut all = messages(prompt, "prompt")?;
            for message in &mut all {
                message.weight = 0.0;
            }
            if completion.trim().is_empty() {
                return Err(RowError::empty(key));
            }
            all.push(Message::assistant(completion.clone()));
            Ok(Content::Chat { messages: all, extras: extras(row)? })
        }
        _ => {
            let (prompt, completion) = (string(row, "prompt")?, string(row, key)?);
            if completion.is_empty() {
                return Err(RowError::empty(key));
            }
            if let Some(system) = system_of(row) {
                let messages = vec![system, Message::user(prompt), Message::assistant(completion)];
                return Ok(Content::Chat { messages, extras: extras(row)? });
            }
            Ok(Content::Completion { prompt: prompt.into(), completion: completion.into() })
        }
    }
}
