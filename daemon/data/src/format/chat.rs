//! Rows to imitate: conversations, and the formats with one question and its answer.

use serde_json::Value;

use super::fields::{answer_of, list};
use super::message::{messages, with_answer};
use super::prompt::{self, extras, prompt_of, with_system};
use super::{Content, Format, Layout, Prompt, Row};
use crate::example::DataKind;
use crate::message::Message;
use crate::row_error::{RowError, RowResult};

/// What the formats of this file have in common.
const CONVERSATION: Format = Format {
    name: "",
    kind: DataKind::Supervised,
    layout: Layout::Conversation,
    keys: &[],
    reads: &["system", "system_prompt", "system_message", "tools", "functions", "documents", "chat_template_kwargs"],
    lists: &[],
    fits: |_| true,
    read: |row| conversation(row, "messages"),
};

/// `messages`: a list of `role` and `content`.
pub(super) static MESSAGES: Format = Format {
    name: "chat messages",
    keys: &[&["messages"]],
    lists: &["messages", "tools", "functions"],
    ..CONVERSATION
};

/// `conversations`: a list of `from` and `value`.
pub(super) static SHARE_GPT: Format = Format {
    name: "ShareGPT conversations",
    keys: &[&["conversations", "conversation"]],
    lists: &["conversations", "conversation"],
    read: |row| conversation(row, if super::given(row, "conversations") { "conversations" } else { "conversation" }),
    ..CONVERSATION
};

/// `instruction`, perhaps with a passage and earlier turns, and `output` (or
/// `response`).
pub(super) static INSTRUCTION: Format = Format {
    name: "instruction/output",
    keys: &[&["instruction"], &["output", "response"]],
    reads: prompt::READS,
    read: |row| one_answer(row, &["instruction"], &["output", "response"]),
    ..CONVERSATION
};

/// `prompt` and `completion` (or `response`), texts or lists of messages.
pub(super) static PROMPT_COMPLETION: Format = Format {
    name: "prompt/completion",
    layout: Layout::Completion,
    keys: &[&["prompt"], &["completion", "response"]],
    reads: prompt::READS,
    lists: &["prompt", "completion", "history"],
    read: completion_row,
    ..CONVERSATION
};

/// `question` (or `query`) and `answer` (or `response`).
pub(super) static QUESTION_ANSWER: Format = Format {
    name: "question/answer",
    keys: &[&["question", "query"], &["answer", "response"]],
    reads: prompt::READS,
    read: |row| one_answer(row, &["question", "query"], &["answer", "response"]),
    ..CONVERSATION
};

/// `input` and `output` alone.
pub(super) static INPUT_OUTPUT: Format = Format {
    name: "input/output",
    keys: &[&["input"], &["output"]],
    reads: prompt::READS,
    fits: |row| row.get("input").is_some_and(Value::is_string),
    read: |row| one_answer(row, &["input"], &["output"]),
    ..CONVERSATION
};

fn conversation(row: &Row, key: &str) -> RowResult<Content> {
    let messages = with_answer(messages(list(row, key)?, key)?, key)?;
    Ok(Content::Chat { messages: with_system(row, messages)?, extras: extras(row)? })
}

fn one_answer(row: &Row, questions: &[&str], answers: &[&'static str]) -> RowResult<Content> {
    let (answer, key) = answer_of(row, answers)?;
    if answer.trim().is_empty() {
        return Err(RowError::empty(key));
    }
    let mut messages = prompt_of(row, questions)?.into_messages();
    messages.push(Message::assistant(answer));
    Ok(Content::Chat { messages, extras: extras(row)? })
}

fn completion_row(row: &Row) -> RowResult<Content> {
    let key = if super::given(row, "completion") { "completion" } else { "response" };
    let is_text = row.get(key).is_some_and(Value::is_string);
    if is_text && row.get("prompt").is_none_or(|prompt| !prompt.is_array()) {
        let (completion, _) = answer_of(row, &["completion", "response"])?;
        if completion.trim().is_empty() {
            return Err(RowError::empty(key));
        }
        // A prompt may be empty: the completion is then a text of its own.
        let prompt = match prompt_of(row, &["prompt"]) {
            Err(RowError::Empty(_)) if row.get("prompt").is_some_and(Value::is_string) => Prompt::Text(String::new()),
            prompt => prompt?,
        };
        return Ok(match prompt {
            Prompt::Text(prompt) if !has_extras(row) => Content::Completion { prompt, completion: completion.into() },
            prompt => {
                // Earlier turns are context; the completion is what the row teaches.
                let mut messages = prompt.into_messages();
                messages.iter_mut().for_each(|message| message.weight = 0.0);
                messages.push(Message::assistant(completion));
                Content::Chat { messages, extras: extras(row)? }
            }
        });
    }
    // Of a conversation cut in two, only the second part is learned.
    let mut all = prompt_of(row, &["prompt"])?.into_messages();
    all.iter_mut().for_each(|message| message.weight = 0.0);
    match row.get(key) {
        Some(Value::Array(completion)) => all.extend(with_answer(messages(completion, key)?, key)?),
        _ => {
            let (completion, key) = answer_of(row, &["completion", "response"])?;
            if completion.trim().is_empty() {
                return Err(RowError::empty(key));
            }
            all.push(Message::assistant(completion));
        }
    }
    Ok(Content::Chat { messages: all, extras: extras(row)? })
}

/// Whether a row brings something for the template beside messages.
fn has_extras(row: &Row) -> bool {
    ["tools", "functions", "documents", "chat_template_kwargs"].iter().any(|key| super::keys::is_given(row, key))
}
