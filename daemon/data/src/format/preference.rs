//! Rows with a preference: pairs of completions, and completions with a label.

use serde_json::Value;

use super::chat::{messages, system_of};
use super::fields::{extras, flag, kind_of, string};
use super::{Content, Format, Layout, PROMPT_KEYS, Prompt, Row};
use crate::example::DataKind;
use crate::message::Message;
use crate::row_error::{RowError, RowResult};

/// `prompt`, `chosen` and `rejected`.
pub(super) static PAIRS: Format = Format {
    name: "preference pairs",
    kind: DataKind::Pairs,
    layout: Layout::Completion,
    keys: &[PROMPT_KEYS, &["chosen"], &["rejected"]],
    optional: &[],
    lists: &["prompt", "chosen", "rejected"],
    read: pair_row,
};

/// `chosen` and `rejected`, each with the prompt in it.
pub(super) static IMPLICIT_PAIRS: Format = Format {
    name: "preference pairs with the prompt inside",
    kind: DataKind::Pairs,
    layout: Layout::Conversation,
    keys: &[&["chosen"], &["rejected"]],
    optional: &[],
    lists: &["chosen", "rejected"],
    read: implicit_row,
};

/// `prompt`, `completion` and a `label`.
pub(super) static LABELLED: Format = Format {
    name: "labelled completions",
    kind: DataKind::Labelled,
    layout: Layout::Completion,
    keys: &[&["prompt"], &["completion"], &["label"]],
    optional: &[],
    lists: &["prompt", "completion"],
    read: labelled_row,
};

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

/// A transcript as hh-rlhf writes it, as messages. `None` if the text is none.
fn transcript(text: &str) -> Option<Vec<Message>> {
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
fn whole_side(value: &Value, key: &str) -> RowResult<Vec<Message>> {
    match value {
        Value::Array(items) => messages(items, key),
        Value::String(text) => transcript(text).ok_or_else(|| RowError::NoTurns(key.to_owned())),
        other => Err(RowError::value(key, kind_of(other), "a string or a list")),
    }
}

fn implicit_row(row: &Row) -> RowResult<Content> {
    let chosen = whole_side(&row["chosen"], "chosen")?;
    let rejected = whole_side(&row["rejected"], "rejected")?;
    split_common(chosen, rejected, row)
}

/// Takes the messages that both sides begin with as the prompt.
fn split_common(mut chosen: Vec<Message>, mut rejected: Vec<Message>, row: &Row) -> RowResult<Content> {
    if chosen == rejected {
        return Err(RowError::Same("chosen", "rejected"));
    }
    let common = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
    if common == 0 {
        return Err(RowError::NoCommonPrompt);
    }
    let prompt: Vec<Message> = chosen.drain(..common).collect();
    rejected.drain(..common);
    let (chosen, rejected) = (answer(chosen, "chosen")?, answer(rejected, "rejected")?);
    Ok(Content::Pair { prompt: Prompt::Messages(prompt), chosen, rejected, extras: extras(row)? })
}

/// A completion must be the assistant's, and end with the assistant.
fn answer(mut messages: Vec<Message>, key: &str) -> RowResult<Vec<Message>> {
    while messages.last().is_some_and(|last| !last.is_assistant()) {
        messages.pop();
    }
    match messages.first() {
        None => Err(RowError::NoAnswer(key.to_owned())),
        Some(first) if !first.is_assistant() => Err(RowError::PromptsDiffer),
        Some(_) if messages.iter().any(|message| message.role == "user") => Err(RowError::GoesOn(key.to_owned())),
        Some(_)
            if messages
                .iter()
                .all(|message| message.content.trim().is_empty() && !message.extra.contains_key("tool_calls")) =>
        {
            Err(RowError::empty(key))
        }
        Some(_) => Ok(messages),
    }
}

/// `prompt` (or `question`, `instruction`), and a `system` text before it.
fn prompt_of(row: &Row) -> RowResult<Prompt> {
    let key = PROMPT_KEYS.iter().find(|key| row.contains_key(**key)).copied().unwrap_or("prompt");
    let prompt = match &row[key] {
        Value::Array(items) => Prompt::Messages(messages(items, key)?),
        Value::String(text) if text.trim().is_empty() => {
            return Err(RowError::empty(key));
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
            return Err(RowError::value(key, kind_of(other), "a string or a list"));
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
fn completion_of(row: &Row, key: &str) -> RowResult<Vec<Message>> {
    match &row[key] {
        Value::Array(items) => answer(messages(items, key)?, key),
        _ => {
            let text = string(row, key)?;
            if text.trim().is_empty() {
                return Err(RowError::empty(key));
            }
            Ok(vec![Message::assistant(text)])
        }
    }
}

fn pair_row(row: &Row) -> RowResult<Content> {
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
        return Err(RowError::Same("chosen", "rejected"));
    }
    Ok(Content::Pair { prompt: prompt_of(row)?, chosen, rejected, extras: extras(row)? })
}

fn labelled_row(row: &Row) -> RowResult<Content> {
    Ok(Content::Labelled {
        prompt: prompt_of(row)?,
        completion: completion_of(row, "completion")?,
        label: flag(&row["label"], "label")?,
        extras: extras(row)?,
    })
}
