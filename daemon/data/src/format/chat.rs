//! Conversations: `messages`, ShareGPT, and the formats with one question.

use finetuned_plugin_api::suggest::nearest;
use serde_json::{Map, Value};

use super::{Content, extras, flag, list, string, string_of, weight};
use crate::message::Message;
use crate::rows::kind_of;

const ROLES: &[&str] = &["system", "user", "assistant", "tool"];

/// Roles by the names that datasets give them.
fn role(name: &str) -> Result<&'static str, String> {
    Ok(match name {
        "system" | "developer" => "system",
        "user" | "human" | "prompter" => "user",
        "assistant" | "gpt" | "chatgpt" | "bing" | "bard" | "model" | "bot" => "assistant",
        "tool" | "function" | "observation" | "ipython" | "function_response" | "tool_response" => "tool",
        "function_call" | "tool_call" => "assistant",
        other => {
            let hint = match nearest(other, ROLES.iter().copied()) {
                Some(known) => format!("did you mean `{known}`?"),
                None => format!("expected {}", ROLES.join(", ")),
            };
            return Err(format!("unknown role `{other}`: {hint}"));
        }
    })
}

/// A message's text: a string, nothing, or parts of type text.
fn text(value: Option<&Value>, name: &str) -> Result<String, String> {
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
                        return Err(format!("`{name}` has a part of type `{kind}`: only text can be trained on"));
                    }
                }
            }
            Ok(all)
        }
        Some(other) => Err(format!("`{name}` is {}: expected a string", kind_of(other))),
    }
}

/// One message of `role` and `content`, or of `from` and `value`.
fn message(value: &Value) -> Result<Message, String> {
    let Value::Object(map) = value else {
        return Err(format!("it is {}: expected an object", kind_of(value)));
    };
    let role_key = if map.contains_key("role") { "role" } else { "from" };
    let text_key = ["content", "value", "text"].into_iter().find(|key| map.contains_key(*key));
    if !map.contains_key(role_key) {
        let slip = map.keys().find_map(|key| nearest(key, ["role"]).map(|_| key));
        let hint = slip.map(|key| format!("; did you mean it by `{key}`?")).unwrap_or_default();
        return Err(format!("no `role`{hint}"));
    }
    let calls = map.get("tool_calls").is_some_and(|calls| !calls.is_null());
    if text_key.is_none() && !calls {
        let slip = map.keys().find_map(|key| nearest(key, ["content"]).map(|_| key));
        let hint = slip.map(|key| format!("; did you mean it by `{key}`?")).unwrap_or_default();
        return Err(format!("no `content`{hint}"));
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
        return Err("the assistant's text is empty".into());
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
pub(super) fn messages(items: &[Value], key: &str) -> Result<Vec<Message>, String> {
    items
        .iter()
        .enumerate()
        .map(|(index, item)| message(item).map_err(|reason| format!("`{key}`: message {}: {reason}", index + 1)))
        .collect()
}

/// # Errors
/// If no message is the assistant's.
fn with_answer(messages: Vec<Message>, key: &str) -> Result<Vec<Message>, String> {
    if messages.is_empty() {
        return Err(format!("`{key}` is empty"));
    }
    if !messages.iter().any(Message::is_assistant) {
        return Err(format!("`{key}` has no message of the assistant: there is nothing to learn"));
    }
    Ok(messages)
}

pub(super) fn messages_row(row: &Map<String, Value>, key: &str) -> Result<Content, String> {
    let mut messages = with_answer(messages(list(row, key)?, key)?, key)?;
    if let Some(Value::String(system)) = row.get("system")
        && !system.is_empty()
        && messages[0].role != "system"
    {
        messages.insert(0, Message::system(system.clone()));
    }
    Ok(Content::Chat { messages, extras: extras(row)? })
}

pub(super) fn sharegpt_row(row: &Map<String, Value>) -> Result<Content, String> {
    let key = if row.contains_key("conversations") { "conversations" } else { "conversation" };
    messages_row(row, key)
}

/// `system`, where a row of one question has it.
pub(super) fn system_of(row: &Map<String, Value>) -> Option<Message> {
    match row.get("system") {
        Some(Value::String(system)) if !system.trim().is_empty() => Some(Message::system(system.clone())),
        _ => None,
    }
}

pub(super) fn instruction_row(row: &Map<String, Value>) -> Result<Content, String> {
    let (answer, key) = string_of(row, &["output", "response"])?;
    if answer.trim().is_empty() {
        return Err(format!("`{key}` is empty"));
    }
    let mut question = string(row, "instruction")?.to_owned();
    if let Some(input) = row.get("input").filter(|input| !input.is_null()) {
        let Value::String(input) = input else {
            return Err(format!("`input` is {}: expected a string", kind_of(input)));
        };
        if !input.trim().is_empty() {
            question = if question.is_empty() { input.clone() } else { format!("{question}\n\n{input}") };
        }
    }
    if question.trim().is_empty() {
        return Err("`instruction` is empty".into());
    }
    let mut messages: Vec<Message> = system_of(row).into_iter().collect();
    messages.extend([Message::user(question), Message::assistant(answer)]);
    Ok(Content::Chat { messages, extras: extras(row)? })
}

pub(super) fn question_row(row: &Map<String, Value>) -> Result<Content, String> {
    let (question, answer) = (string(row, "question")?, string(row, "answer")?);
    if question.trim().is_empty() {
        return Err("`question` is empty".into());
    }
    if answer.trim().is_empty() {
        return Err("`answer` is empty".into());
    }
    let mut messages: Vec<Message> = system_of(row).into_iter().collect();
    messages.extend([Message::user(question), Message::assistant(answer)]);
    Ok(Content::Chat { messages, extras: extras(row)? })
}

pub(super) fn completion_row(row: &Map<String, Value>) -> Result<Content, String> {
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
                return Err(format!("`{key}` is empty"));
            }
            all.push(Message::assistant(completion.clone()));
            Ok(Content::Chat { messages: all, extras: extras(row)? })
        }
        _ => {
            let (prompt, completion) = (string(row, "prompt")?, string(row, key)?);
            if completion.is_empty() {
                return Err(format!("`{key}` is empty"));
            }
            if let Some(system) = system_of(row) {
                let messages = vec![system, Message::user(prompt), Message::assistant(completion)];
                return Ok(Content::Chat { messages, extras: extras(row)? });
            }
            Ok(Content::Completion { prompt: prompt.into(), completion: completion.into() })
        }
    }
}
