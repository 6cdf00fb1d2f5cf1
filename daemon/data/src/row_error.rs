//! Why a single row cannot be used. All words that a user reads about a bad row
//! are in this file.

use serde::{Deserialize, Serialize};

/// What is wrong with a bad row, roughly: what rows are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadRowKind {
    /// Its bytes are no row: cut off, not UTF-8, not a JSON object, or too many.
    Unreadable,
    /// Its keys are those of no format, or of another format than the file's.
    Format,
    /// A key is missing, or its value is empty, of the wrong type or out of range.
    Value,
    /// Its parts do not fit each other.
    Contradiction,
    /// It is well formed and holds nothing to learn.
    NothingToLearn,
    /// The chat template or the tokenizer cannot write it as tokens to learn.
    Rendering,
}

pub(crate) type RowResult<T> = Result<T, RowError>;

/// Why a row cannot be used; its text is the reason in a [`crate::BadRow`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RowError {
    /// More bytes than are read at once.
    #[error("the row is larger than {} MiB", .limit >> 20)]
    TooLarge { limit: usize },
    #[error("the line is cut off: the file looks incomplete")]
    LineCutOff,
    #[error("the file ends inside the list: it looks incomplete")]
    ListCutOff,
    #[error("a run of NUL bytes: the file was damaged by a crash or a full disk, copy it again")]
    NulBytes,
    #[error("not UTF-8: byte 0x{byte:02x} at {at}; save the file as UTF-8")]
    NotUtf8 { byte: u8, at: At },
    /// `problem` is what the parser said.
    #[error("not JSON: {problem} at {at}")]
    NotJson { problem: String, at: At },
    #[error("expected a JSON object, got {got}")]
    NotAnObject { got: &'static str },

    #[error("the row is an empty object")]
    NoKeys,
    #[error("{}", unknown_format(.0))]
    UnknownFormat(Box<UnknownFormat>),
    #[error("the row is {found}, the file is {file}{}", is_missing(.missing))]
    OtherFormat { found: &'static str, file: &'static str, missing: Option<&'static str> },

    /// A key that says that a row is not one to imitate.
    #[error(
        "`{key}` judges the row, and {format} rows are imitated whatever it says: a loss for judged rows reads \
         `prompt`, `completion` and `label`, or `chosen` and `rejected`; remove the key to imitate them all"
    )]
    Verdict { key: &'static str, format: &'static str },
    /// A key that says how much of a row is learned, at a place where nothing reads it.
    #[error("`{0}` says what of the row is learned, and is not read here: give messages a `weight` of 0 or 1")]
    RowMask(&'static str),
    #[error("`{0}` is not text: only text can be trained on")]
    Media(&'static str),
    #[error("`{0}` beside `text` marks one message of a conversation: join them to rows of `messages`")]
    PartOfConversation(&'static str),
    #[error("`{key}` has no place beside a `{beside}` of messages: write it into a message")]
    NoPlace { key: &'static str, beside: String },
    #[error("`{0}` is missing")]
    Missing(String),
    #[error("`{0}` is missing: the loss asks for this column")]
    MissingColumn(String),
    #[error("`{0}` is empty")]
    Empty(String),
    /// A value of the wrong type or out of its range.
    #[error("`{key}` is {got}: expected {expected}")]
    Value { key: String, got: String, expected: &'static str },
    #[error("`{key}` is {got}: expected a string; {}", text_remedy(.got))]
    NotAText { key: String, got: &'static str },
    #[error("`{key}`[{index}] is {got}: expected a token id")]
    NotAnId { key: &'static str, index: usize, got: String },
    #[error("`{0}` is a string that is no JSON list")]
    NotAJsonList(&'static str),
    #[error(
        "the token {token:?} has the id {id}, and the model's embedding has {size} rows: use the tokenizer that \
         belongs to the model, or a model whose embedding was enlarged with it"
    )]
    Vocabulary { token: String, id: u32, size: usize },
    #[error("`{0}` is no list of calls, and no JSON of one")]
    NotCalls(&'static str),
    /// What is wrong with a call of a message; `number` counts from 1.
    #[error("call {number}{}", call_fault(.fault))]
    Call { number: usize, fault: CallFault },
    #[error("`tools`: number {number} is no tool: expected an object with a `name`")]
    NotATool { number: usize },

    /// What is wrong with a message of a list; `number` counts from 1.
    #[error("`{key}`: message {number}: {source}")]
    Message { key: String, number: usize, source: Box<RowError> },
    #[error("it is {0}: expected an object")]
    NotAMessage(&'static str),
    /// `meant` is a key of the message that looks like a slip of `key`.
    #[error("no `{key}`{}", meant_by(.meant))]
    MessageLacks { key: &'static str, meant: Option<String> },
    #[error("unknown role `{role}`: {}", role_hint(.meant, .known))]
    UnknownRole { role: String, meant: Option<&'static str>, known: &'static [&'static str] },
    #[error("`{key}` has a part of type `{kind}`: only text can be trained on")]
    NotText { key: String, kind: String },
    #[error("the assistant's text is empty")]
    EmptyAnswer,
    #[error("`{0}` has no question before the answer that is judged")]
    NoQuestion(String),
    #[error("`prompt` is not the question that `chosen` and `rejected` begin with")]
    OtherPromptInside,
    #[error("`{0}` has no message of the assistant: there is nothing to learn")]
    NoAssistant(String),

    #[error(
        "`{0}` is a text without turns, and there is no `prompt`: expected messages, \
         a `prompt`, or a transcript of \"Human:\" and \"Assistant:\""
    )]
    NoTurns(String),
    #[error("`{0}` and `{1}` are the same")]
    Same(&'static str, &'static str),
    #[error("`chosen` and `rejected` are the same once rendered")]
    SameRendered,
    #[error("`chosen` and `rejected` do not begin with the same prompt")]
    NoCommonPrompt,
    #[error("`chosen` and `rejected` differ before the answer: their prompts are not the same")]
    PromptsDiffer,
    #[error("`{0}` has no answer of the assistant")]
    NoAnswer(String),
    #[error("`{0}` goes on with another message of the user behind the answer that differs")]
    GoesOn(String),
    #[error("a `weight` other than 0 and 1 is for conversations: a completion is compared whole")]
    PartialWeight,

    #[error("`{key}` has {got} entries, `input_ids` has {expected}")]
    Length { key: &'static str, got: usize, expected: usize },
    #[error(
        "`labels`[{index}] is {label} where `input_ids` has {id}: a label is the \
         token at its own place, or -100"
    )]
    Label { index: usize, label: String, id: u32 },
    #[error("the row has fewer than two tokens: nothing can be predicted")]
    OneToken,
    #[error("the text is a single token: nothing can be predicted")]
    OneTokenText,
    #[error("{}: there is nothing to learn", untrained(*.weights, *.labels))]
    Untrained { weights: bool, labels: bool },
    #[error("no message of the completion is to be trained on")]
    UntrainedCompletion,

    /// What the template or the tokenizer said.
    #[error("{0}")]
    Refused(String),
    #[error("the chat template does not show where message {0} (assistant) is rendered")]
    TurnNotShown(usize),
    #[error("the chat template leaves out the assistant's text")]
    AnswerLeftOut,
    /// `what` of message `number` (from 1) does not come back from the template.
    #[error("the chat template does not write {what} of message {number} ({role}): the model would not see it")]
    NotRendered { what: &'static str, number: usize, role: String },
    #[error("message {0} (assistant) is nothing but its end token once the chat template has written it")]
    EmptyTurn(usize),
    #[error("the chat template renders the prompt differently before each completion")]
    PromptChanges,
    #[error("the prompt is empty once rendered")]
    EmptyPrompt,
}

impl RowError {
    /// What the row is counted as.
    pub fn kind(&self) -> BadRowKind {
        match self {
            Self::TooLarge { .. }
            | Self::LineCutOff
            | Self::ListCutOff
            | Self::NulBytes
            | Self::NotUtf8 { .. }
            | Self::NotJson { .. }
            | Self::NotAnObject { .. } => BadRowKind::Unreadable,
            Self::NoKeys
            | Self::UnknownFormat(_)
            | Self::OtherFormat { .. }
            | Self::Verdict { .. }
            | Self::RowMask(_)
            | Self::Media(_)
            | Self::PartOfConversation(_)
            | Self::NoPlace { .. } => BadRowKind::Format,
            Self::Missing(_)
            | Self::MissingColumn(_)
            | Self::Empty(_)
            | Self::Value { .. }
            | Self::NotAText { .. }
            | Self::NotCalls(_)
            | Self::Call { .. }
            | Self::NotATool { .. }
            | Self::NotAnId { .. }
            | Self::NotAJsonList(_)
            | Self::Vocabulary { .. }
            | Self::NotAMessage(_)
            | Self::MessageLacks { .. }
            | Self::UnknownRole { .. }
            | Self::NotText { .. }
            | Self::EmptyAnswer => BadRowKind::Value,
            Self::Message { source, .. } => source.kind(),
            Self::NoTurns(_)
            | Self::NoCommonPrompt
            | Self::PromptsDiffer
            | Self::OtherPromptInside
            | Self::NoQuestion(_)
            | Self::GoesOn(_)
            | Self::PartialWeight
            | Self::Length { .. }
            | Self::Label { .. } => BadRowKind::Contradiction,
            Self::NoAssistant(_)
            | Self::NoAnswer(_)
            | Self::Same(..)
            | Self::SameRendered
            | Self::OneToken
            | Self::OneTokenText
            | Self::Untrained { .. }
            | Self::UntrainedCompletion => BadRowKind::NothingToLearn,
            Self::Refused(_)
            | Self::TurnNotShown(_)
            | Self::AnswerLeftOut
            | Self::NotRendered { .. }
            | Self::EmptyTurn(_)
            | Self::PromptChanges
            | Self::EmptyPrompt => BadRowKind::Rendering,
        }
    }

    pub fn missing(key: &str) -> Self {
        Self::Missing(key.to_owned())
    }

    pub fn empty(key: &str) -> Self {
        Self::Empty(key.to_owned())
    }

    pub fn not_a_text(key: &str, got: &'static str) -> Self {
        Self::NotAText { key: key.to_owned(), got }
    }

    pub fn value(key: &str, got: impl ToString, expected: &'static str) -> Self {
        Self::Value { key: key.to_owned(), got: got.to_string(), expected }
    }
}

/// What is wrong with a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CallFault {
    /// What it is.
    NotAnObject(&'static str),
    NoName,
    /// What they are instead of an object.
    Arguments(String),
}

fn call_fault(fault: &CallFault) -> String {
    match fault {
        CallFault::NotAnObject(got) => format!(" is {got}: expected an object"),
        CallFault::NoName => " has no `name`".into(),
        CallFault::Arguments(problem) => format!(": its arguments are no JSON object ({problem})"),
    }
}

fn text_remedy(got: &str) -> &'static str {
    match got {
        "null" => "write \"\" or leave the row out",
        "an object" | "a list" => "write it as a string of JSON",
        _ => "write it in quotes",
    }
}

/// A place in a row, from 1. `line` counts in the file, and is there if the row
/// has several lines before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct At {
    pub line: Option<usize>,
    pub column: usize,
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        self.line.iter().try_for_each(|line| write!(f, "line {line}, "))?;
        write!(f, "column {}", self.column)
    }
}

/// A row with keys that no format has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnknownFormat {
    pub keys: Vec<String>,
    /// The first key of the file's format that the row lacks.
    pub missing: Option<&'static str>,
    /// A key of the row, and the known key that it looks like a slip of.
    pub slip: Option<(String, &'static str)>,
    /// A prompt that the row has without an answer.
    pub prompt: Option<&'static str>,
}

/// Keys of a row that are named in a message; more are an ellipsis.
const NAMED_KEYS: usize = 8;

fn unknown_format(row: &UnknownFormat) -> String {
    let keys: Vec<String> = row.keys.iter().take(NAMED_KEYS).map(|key| format!("`{key}`")).collect();
    let keys = keys.join(", ") + if row.keys.len() > NAMED_KEYS { ", …" } else { "" };
    let hint = match (&row.slip, row.prompt) {
        (Some((slip, known)), _) => format!("; did you mean `{known}` instead of `{slip}`?"),
        (None, Some(prompt)) => format!("; there is a `{prompt}` but no answer to learn"),
        (None, None) => String::new(),
    };
    match row.missing {
        None => format!("no known format has the keys {keys}{hint}"),
        Some(_) => format!("the row has the keys {keys}{}{hint}", is_missing(&row.missing)),
    }
}

fn is_missing(key: &Option<&'static str>) -> String {
    key.map(|key| format!(": `{key}` is missing")).unwrap_or_default()
}

fn meant_by(key: &Option<String>) -> String {
    key.as_ref().map(|key| format!("; did you mean it by `{key}`?")).unwrap_or_default()
}

fn role_hint(meant: &Option<&'static str>, known: &[&str]) -> String {
    match meant {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("expected {}", known.join(", ")),
    }
}

fn untrained(weights: bool, labels: bool) -> &'static str {
    match (weights, labels) {
        (false, _) => "every label is -100",
        (true, false) => "no token has a weight above 0",
        (true, true) => "no token has a label and a weight above 0",
    }
}
