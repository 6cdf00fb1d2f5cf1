//! Which of the known formats a row is in, and what it says in it.

mod chat;
mod preference;
mod tokens;

use finetuned_plugin_api::suggest::nearest;
use serde_json::{Map, Value};

use crate::example::DataKind;
use crate::message::Message;
use crate::rows::kind_of;
use crate::template::Extras;

/// Keys whose lists belong to one row, so that an object with one of them is
/// a row and not a file of rows.
pub(crate) const ROW_LIST_KEYS: &[&str] =
    &["messages", "conversations", "conversation", "prompt", "completion", "chosen", "rejected", "tools", "input_ids"];

/// A format of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// `messages`: a list of `role` and `content`.
    Messages,
    /// `conversations`: a list of `from` and `value`.
    ShareGpt,
    /// `instruction`, perhaps `input`, and `output` (or `response`).
    Instruction,
    /// `prompt` and `completion` (or `response`), texts or lists of messages.
    PromptCompletion,
    /// `question` and `answer`.
    QuestionAnswer,
    /// `text`: all of it is trained.
    Text,
    /// `input_ids`, and `labels` with -100 where nothing is trained.
    Tokens,
    /// `prompt`, `chosen` and `rejected`.
    Pairs,
    /// `chosen` and `rejected`, each with the prompt in it.
    ImplicitPairs,
    /// `prompt`, `completion` and a `label`.
    Labelled,
    /// `prompt_ids`, `chosen_ids` and `rejected_ids`.
    PairTokens,
    /// `prompt_ids`, `completion_ids`, `label`, perhaps `KL_completion_ids`.
    LabelledTokens,
}

/// A format's keys: each group needs one of its names. In order of
/// precedence: a row is in the first format whose groups it has.
const FORMATS: &[(Format, &[&[&str]])] = &[
    (Format::PairTokens, &[&["prompt_ids"], &["chosen_ids"], &["rejected_ids"]]),
    (Format::LabelledTokens, &[&["prompt_ids"], &["completion_ids"], &["label"]]),
    (Format::Tokens, &[&["input_ids"]]),
    (Format::Pairs, &[&["prompt", "question", "instruction"], &["chosen"], &["rejected"]]),
    (Format::ImplicitPairs, &[&["chosen"], &["rejected"]]),
    (Format::Labelled, &[&["prompt"], &["completion"], &["label"]]),
    (Format::Messages, &[&["messages"]]),
    (Format::ShareGpt, &[&["conversations", "conversation"]]),
    (Format::Instruction, &[&["instruction"], &["output", "response"]]),
    (Format::PromptCompletion, &[&["prompt"], &["completion", "response"]]),
    (Format::QuestionAnswer, &[&["question"], &["answer"]]),
    (Format::Text, &[&["text"]]),
];

/// Every key that means something in some format, for "did you mean".
const KNOWN_KEYS: &[&str] = &[
    "messages",
    "conversations",
    "conversation",
    "instruction",
    "input",
    "output",
    "response",
    "prompt",
    "completion",
    "question",
    "answer",
    "text",
    "input_ids",
    "labels",
    "chosen",
    "rejected",
    "label",
    "prompt_ids",
    "chosen_ids",
    "rejected_ids",
    "completion_ids",
];

/// What the formats are, for a message.
pub(crate) const FORMAT_HELP: &str = "Rows need `messages`, `conversations`, `instruction` and \
    `output`, `prompt` and `completion`, `question` and `answer`, `text`, `input_ids` and \
    `labels`, `chosen` and `rejected` (perhaps with `prompt`), or `prompt`, `completion` and `label`.";

impl Format {
    /// The format of a row, by its keys.
    pub(crate) fn of(row: &Map<String, Value>) -> Option<Self> {
        FORMATS.iter().map(|(format, _)| *format).find(|format| format.fits(row))
    }

    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "chat messages",
            Self::ShareGpt => "ShareGPT conversations",
            Self::Instruction => "instruction/output",
            Self::PromptCompletion => "prompt/completion",
            Self::QuestionAnswer => "question/answer",
            Self::Text => "text",
            Self::Tokens => "tokenised",
            Self::Pairs => "preference pairs",
            Self::ImplicitPairs => "preference pairs with the prompt inside",
            Self::Labelled => "labelled completions",
            Self::PairTokens => "tokenised preference pairs",
            Self::LabelledTokens => "tokenised labelled completions",
        }
    }

    pub(crate) fn kind(self) -> DataKind {
        match self {
            Self::Pairs | Self::ImplicitPairs | Self::PairTokens => DataKind::Pairs,
            Self::Labelled | Self::LabelledTokens => DataKind::Labelled,
            _ => DataKind::Supervised,
        }
    }

    fn groups(self) -> &'static [&'static [&'static str]] {
        FORMATS.iter().find(|(format, _)| *format == self).map_or(&[], |(_, groups)| groups)
    }

    fn fits(self, row: &Map<String, Value>) -> bool {
        self.groups().iter().all(|names| names.iter().any(|name| row.contains_key(*name)))
    }

    /// What the row says.
    ///
    /// # Errors
    /// The reason it says nothing, in words for the user.
    pub(crate) fn read(self, row: &Map<String, Value>) -> Result<Content, String> {
        if !self.fits(row) {
            return Err(match Self::of(row) {
                Some(other) => format!("the row is {}, the file is {}{}", other.name(), self.name(), self.missing(row)),
                None => unknown(row, self.missing(row)),
            });
        }
        match self {
            Self::Messages => chat::messages_row(row, "messages"),
            Self::ShareGpt => chat::sharegpt_row(row),
            Self::Instruction => chat::instruction_row(row),
            Self::PromptCompletion => chat::completion_row(row),
            Self::QuestionAnswer => chat::question_row(row),
            Self::Text => match string(row, "text")? {
                "" => Err("`text` is empty".into()),
                text => Ok(Content::Text(text.to_owned())),
            },
            Self::Tokens => tokens::row(row),
            Self::Pairs => preference::pair_row(row),
            Self::ImplicitPairs => preference::implicit_row(row),
            Self::Labelled => preference::labelled_row(row),
            Self::PairTokens => tokens::pair_row(row),
            Self::LabelledTokens => tokens::labelled_row(row),
        }
    }

    fn missing(self, row: &Map<String, Value>) -> String {
        self.groups()
            .iter()
            .find(|names| !names.iter().any(|name| row.contains_key(*name)))
            .map(|names| format!(": `{}` is missing", names[0]))
            .unwrap_or_default()
    }
}

/// Why a row is in no format.
pub(crate) fn unknown(row: &Map<String, Value>, missing: String) -> String {
    if row.is_empty() {
        return "the row is an empty object".into();
    }
    let hint = row
        .keys()
        .filter(|key| !KNOWN_KEYS.contains(&key.as_str()))
        .find_map(|key| nearest(key, KNOWN_KEYS.iter().copied()).map(|known| (key, known)))
        .map(|(key, known)| format!("; did you mean `{known}` instead of `{key}`?"));
    let alone = ["prompt", "question", "instruction"]
        .into_iter()
        .find(|key| row.contains_key(*key))
        .map(|key| format!("; there is a `{key}` but no answer to learn"));
    let keys: Vec<String> = row.keys().take(8).map(|key| format!("`{key}`")).collect();
    let more = if row.len() > 8 { ", …" } else { "" };
    let tail = hint.or(alone).unwrap_or_default();
    if missing.is_empty() {
        format!("no known format has the keys {}{more}{tail}", keys.join(", "))
    } else {
        format!("the row has the keys {}{more}{missing}{tail}", keys.join(", "))
    }
}

/// What a row says, whatever its format.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    /// A conversation whose assistant messages are to be learned.
    Chat { messages: Vec<Message>, extras: Extras },
    /// A prompt and its completion: a user's message and the assistant's
    /// where there is a chat template, one behind the other where not.
    Completion { prompt: String, completion: String },
    /// A document to learn whole.
    Text(String),
    /// Token ids, which of them are trained, and with what weights.
    Tokens { ids: Vec<u32>, trained: Vec<bool>, weights: Option<Vec<f32>> },
    /// Two completions, the better one first.
    Pair { prompt: Prompt, chosen: Vec<Message>, rejected: Vec<Message>, extras: Extras },
    /// Two completions as token ids.
    PairTokens { prompt: Vec<u32>, chosen: Vec<u32>, rejected: Vec<u32> },
    /// A completion and its verdict.
    Labelled { prompt: Prompt, completion: Vec<Message>, label: bool, extras: Extras },
    /// The same as token ids.
    LabelledTokens { prompt: Vec<u32>, completion: Vec<u32>, label: bool, kl_completion: Option<Vec<u32>> },
}

/// What comes before a completion.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Prompt {
    /// One text; completions are single assistant messages.
    Text(String),
    /// Messages.
    Messages(Vec<Message>),
}

impl Prompt {
    /// As messages: a text is the user's.
    pub fn into_messages(self) -> Vec<Message> {
        match self {
            Self::Text(text) => vec![Message::user(text)],
            Self::Messages(messages) => messages,
        }
    }
}

/// The string at `key`.
fn string<'a>(row: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
    match row.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("`{key}` is {}: expected a string", kind_of(other))),
        None => Err(format!("`{key}` is missing")),
    }
}

/// The string at the first of `keys` that is there.
fn string_of<'a>(row: &'a Map<String, Value>, keys: &[&'static str]) -> Result<(&'a str, &'static str), String> {
    let key = keys.iter().find(|key| row.contains_key(**key)).unwrap_or(&keys[0]);
    Ok((string(row, key)?, key))
}

/// The list at `key`.
fn list<'a>(row: &'a Map<String, Value>, key: &str) -> Result<&'a [Value], String> {
    match row.get(key) {
        Some(Value::Array(items)) => Ok(items),
        Some(other) => Err(format!("`{key}` is {}: expected a list", kind_of(other))),
        None => Err(format!("`{key}` is missing")),
    }
}

/// True for `true` and `1`, false for `false` and `0`.
fn flag(value: &Value, name: &str) -> Result<bool, String> {
    match value {
        Value::Bool(flag) => Ok(*flag),
        Value::Number(number) if number.as_f64() == Some(0.0) => Ok(false),
        Value::Number(number) if number.as_f64() == Some(1.0) => Ok(true),
        other => Err(format!("`{name}` is {other}: expected true or false")),
    }
}

/// A weight in the loss: a number of 0 or more, or `true` or `false`.
fn weight(value: &Value, name: &str) -> Result<f32, String> {
    let number = match value {
        Value::Bool(flag) => Some(f32::from(*flag)),
        other => other.as_f64().map(|number| number as f32),
    };
    number
        .filter(|number| number.is_finite() && *number >= 0.0)
        .ok_or_else(|| format!("`{name}` is {value}: expected a number of 0 or more"))
}

/// Tools and documents that a row brings for the template. Some datasets keep
/// tools as a string of JSON.
fn extras(row: &Map<String, Value>) -> Result<Extras, String> {
    let read = |key: &str| match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) if items.is_empty() => Ok(None),
        Some(Value::Array(items)) => Ok(Some(Value::Array(items.clone()))),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => match serde_json::from_str(text) {
            Ok(Value::Array(items)) => Ok(Some(Value::Array(items))),
            _ => Err(format!("`{key}` is a string that is no JSON list")),
        },
        Some(other) => Err(format!("`{key}` is {}: expected a list", kind_of(other))),
    };
    Ok(Extras { tools: read("tools")?, documents: read("documents")? })
}
