//! Rows with a preference: pairs of completions, and completions with a label.

use serde_json::{Map, Value};

use super::chat::{messages, system_of};
use super::{Content, Prompt, extras, flag, string};
use crate::message::Message;
use crate::rows::kind_of;

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

/// A transcript as hh-rlhf writes it, as messages. `None` if the text is none.
pub(super) fn transcript(text: &str) -> Option<Vec<Message>> {
    // Some copies lack the blank line before the first turn.
    let text = format!("\n\n{}", text.trim_start_matches('\n'));
    if !text.starts_with(HUMAN) && !text.starts_with(ASSISTANT) {
        return None;
    }
    let mut found = Vec::new();
    let mut rest = text.as_str();
    loop {
        let (role, body) = match (rest.strip_prefix(HUMAN), rest.strip_prefix(ASSISTANT)) {
            (Some(body), _) => ("user", body),
            (_, Some(body)) => ("assistant", body),
            _ => break,
        };
        let end = [HUMAN, ASSISTANT].iter().filter_map(|mark| body.find(mark)).min();
        let (content, next) = body.split_at(end.unwrap_or(body.len()));
        found.push(Message::new(role, content.trim()));
        rest = next;
    }
    Some(found)
}

/// One side of a pair that brings its prompt along: messages or a transcript.
fn whole_side(value: &Value, key: &str) -> Result<Vec<Message>, String> {
    match value {
        Value::Array(items) => messages(items, key),
        Value::String(text) => transcript(text).ok_or_else(|| {
            format!(
                "`{key}` is a text without turns, and there is no `prompt`: expected messages, \
                 a `prompt`, or a transcript of \"Human:\" and \"Assistant:\""
            )
        }),
        other => Err(format!("`{key}` is {}: expected a string or a list", kind_of(other))),
    }
}

pub(super) fn implicit_row(row: &Map<String, Value>) -> Result<Content, String> {
    let chosen = whole_side(&row["chosen"], "chosen")?;
    let rejected = whole_side(&row["rejected"], "rejected")?;
    split_common(chosen, rejected, row)
}

/// Takes the messages that both sides begin with as the prompt.
fn split_common(
    mut chosen: Vec<Message>,
    mut rejected: Vec<Message>,
    row: &Map<String, Value>,
) -> Result<Content, String> {
    if chosen == rejected {
        return Err("`chosen` and `rejected` are the same".into());
    }
    let common = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
    if common == 0 {
        return Err("`chosen` and `rejected` do not begin with the same prompt".into());
    }
    let prompt: Vec<Message> = chosen.drain(..common).collect();
    rejected.drain(..common);
    let (chosen, rejected) = (answer(chosen, "chosen")?, answer(rejected, "rejected")?);
    Ok(Content::Pair { prompt: Prompt::Messages(prompt), chosen, rejected, extras: extras(row)? })
}

/// A completion must be the assistant's, and end with the assistant.
fn answer(mut messages: Vec<Message>, key: &str) -> Result<Vec<Message>, String> {
    while messages.last().is_some_and(|last| !last.is_assistant()) {
        messages.pop();
    }
    match messages.first() {
        None => Err(format!("`{key}` has no answer of the assistant")),
        Some(first) if !first.is_assistant() => {
            Err("`chosen` and `rejected` differ before the answer: their prompts are not the same".into())
        }
        Some(_) if messages.iter().any(|message| message.role == "user") => {
            Err(format!("`{key}` goes on with another message of the user behind the answer that differs"))
        }
        Some(_)
            if messages
                .iter()
                .all(|message| message.content.trim().is_empty() && !message.extra.contains_key("tool_calls")) =>
        {
            Err(format!("`{key}` is empty"))
        }
        Some(_) => Ok(messages),
    }
}

/// `prompt` (or `question`, `instruction`), and a `system` text before it.
fn prompt_of(row: &Map<String, Value>) -> Result<Prompt, String> {
    let key = ["prompt", "question", "instruction"].into_iter().find(|key| row.contains_key(*key)).unwrap_or("prompt");
    let prompt = match &row[key] {
        Value::Array(items) => Prompt::Messages(messages(items, key)?),
        Value::String(text) if text.trim().is_empty() => {
            return Err(format!("`{key}` is empty"));
        }
        Value::String(text) => match transcript(text) {
            // "…\n\nAssistant:" only opens the turn that the completion fills.
            Some(mut messages) => {
                messages.retain(|message| !message.content.is_empty());
                Prompt::Messages(messages)
            }
            None => Prompt::Text(text.clone()),
        },
        other => {
            return Err(format!("`{key}` is {}: expected a string or a list", kind_of(other)));
        }
    };
    Ok(match system_of(row) {
        None => prompt,
        Some(system) => {
            let mut messages = prompt.into_messages();
            if messages.first().is_none_or(|first| first.role != "system") {
                messages.insert(0, system);
            }
            Prompt::Messages(messages)
        }
    })
}

/// A completion beside a prompt: a text or the assistant's messages.
fn completion_of(row: &Map<String, Value>, key: &str) -> Result<Vec<Message>, String> {
    match &row[key] {
        Value::Array(items) => answer(messages(items, key)?, key),
        _ => {
            let text = string(row, key)?;
            if text.trim().is_empty() {
                return Err(format!("`{key}` is empty"));
            }
            Ok(vec![Message::assistant(text)])
        }
    }
}

pub(super) fn pair_row(row: &Map<String, Value>) -> Result<Content, String> {
    // Some sets repeat the prompt as the first messages of both sides.
    if let (Value::Array(chosen), Value::Array(rejected)) = (&row["chosen"], &row["rejected"]) {
        let (chosen, rejected) = (messages(chosen, "chosen")?, messages(rejected, "rejected")?);
        if chosen.first().is_some_and(|first| !first.is_assistant()) {
            return split_common(chosen, rejected, row);
        }
    }
    // … or as the first turns of a transcript.
    if let (Value::String(chosen), Value::String(rejected)) = (&row["chosen"], &row["rejected"])
        && let (Some(chosen), Some(rejected)) = (transcript(chosen), transcript(rejected))
    {
        return split_common(chosen, rejected, row);
    }
    let (chosen, rejected) = (completion_of(row, "chosen")?, completion_of(row, "rejected")?);
    if chosen == rejected {
        return Err("`chosen` and `rejected` are the same".into());
    }
    Ok(Content::Pair { prompt: prompt_of(row)?, chosen, rejected, extras: extras(row)? })
}

pub(super) fn labelled_row(row: &Map<String, Value>) -> Result<Content, String> {
    Ok(Content::Labelled {
        prompt: prompt_of(row)?,
        completion: completion_of(row, "completion")?,
        label: flag(&row["label"], "label")?,
        extras: extras(row)?,
    })
}
