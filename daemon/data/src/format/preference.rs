//! Rows with a preference: pairs of completions, and completions with a label.

use serde_json::Value;

use super::fields::{answer_of, flag, kind_of, list, string};
use super::message::{messages, with_answer};
use super::prompt::{self, QUESTIONS, extras, prompt_of, with_system};
use super::{Content, Format, Layout, Prompt, Row, given};
use crate::example::DataKind;
use crate::message::Message;
use crate::row_error::{RowError, RowResult};

/// What the formats of pairs have in common.
const PAIR: Format = Format {
    name: "preference pairs",
    kind: DataKind::Pairs,
    layout: Layout::Completion,
    keys: &[QUESTIONS, &["chosen"], &["rejected"]],
    reads: prompt::READS,
    lists: &["prompt", "chosen", "rejected"],
    fits: |_| true,
    read: pair_row,
};

/// `prompt`, `chosen` and `rejected`.
pub(super) static PAIRS: Format = PAIR;

/// `chosen` and `rejected` behind a conversation.
pub(super) static CHAT_PAIRS: Format = Format {
    name: "preference pairs behind a conversation",
    keys: &[&["conversations", "messages"], &["chosen"], &["rejected"]],
    fits: |row| !holds_answer(row),
    read: chat_pair_row,
    ..PAIR
};

/// `chosen` and `rejected`, each with the prompt in it.
pub(super) static IMPLICIT_PAIRS: Format = Format {
    name: "preference pairs with the prompt inside",
    layout: Layout::Conversation,
    keys: &[&["chosen"], &["rejected"]],
    lists: &["chosen", "rejected"],
    read: implicit_row,
    ..PAIR
};

/// OpenAI's pairs: `input` with messages, `preferred_output` and
/// `non_preferred_output`.
pub(super) static OPENAI_PAIRS: Format = Format {
    name: "preference pairs in OpenAI's form",
    keys: &[&["input"], &["preferred_output"], &["non_preferred_output"]],
    lists: &["preferred_output", "non_preferred_output"],
    read: openai_row,
    ..PAIR
};

/// LLaMA-Factory's earlier pairs: `output` is a list, the better answer first.
pub(super) static OUTPUT_PAIRS: Format = Format {
    name: "preference pairs in `output`",
    keys: &[&["instruction"], &["output"]],
    lists: &[],
    fits: |row| two_answers(row).is_some(),
    read: output_pair_row,
    ..PAIR
};

/// What the formats of labelled completions have in common.
const LABEL: Format = Format {
    name: "labelled completions",
    kind: DataKind::Labelled,
    layout: Layout::Completion,
    keys: &[QUESTIONS, ANSWERS, LABELS],
    reads: prompt::READS,
    lists: &["prompt", "completion"],
    fits: |_| true,
    read: labelled_row,
};

const ANSWERS: &[&str] = &["completion", "response", "output", "answer"];

const LABELS: &[&str] = &["label", "kto_tag"];

/// `prompt`, `completion` and a `label`.
pub(super) static LABELLED: Format = LABEL;

/// A conversation and a `label` of its last answer.
pub(super) static LABELLED_CHAT: Format = Format {
    name: "labelled conversations",
    layout: Layout::Conversation,
    keys: &[&["messages", "conversations"], LABELS],
    lists: &["messages", "conversations"],
    read: labelled_chat_row,
    ..LABEL
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

/// One side of a pair: messages, one message, or a transcript. `None` for a text
/// without turns.
fn side(row: &Row, key: &str) -> RowResult<Option<Vec<Message>>> {
    match row.get(key) {
        Some(Value::Array(items)) => Ok(Some(messages(items, key)?)),
        Some(message @ Value::Object(_)) => Ok(Some(messages(std::slice::from_ref(message), key)?)),
        Some(Value::String(text)) => Ok(transcript(text)),
        Some(other) => Err(RowError::value(key, kind_of(other), "a string or a list")),
        None => Err(RowError::missing(key)),
    }
}

/// One side of a pair that brings its prompt along.
fn whole_side(row: &Row, key: &str) -> RowResult<Vec<Message>> {
    side(row, key)?.ok_or_else(|| RowError::NoTurns(key.to_owned()))
}

fn implicit_row(row: &Row) -> RowResult<Content> {
    split_common(whole_side(row, "chosen")?, whole_side(row, "rejected")?, None, row)
}

/// Takes the messages that both sides begin with as the prompt. `prompt` is what the
/// row gives as the prompt beside them: it must be the same, perhaps with a system
/// text before it.
fn split_common(
    mut chosen: Vec<Message>,
    mut rejected: Vec<Message>,
    prompt: Option<Prompt>,
    row: &Row,
) -> RowResult<Content> {
    if chosen == rejected {
        return Err(RowError::Same("chosen", "rejected"));
    }
    let common = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
    if common == 0 {
        return Err(RowError::NoCommonPrompt);
    }
    let mut inside: Vec<Message> = chosen.drain(..common).collect();
    rejected.drain(..common);
    if let Some(prompt) = prompt {
        let beside = prompt.into_messages();
        let same = |a: &Message, b: &Message| a.role == b.role && a.content.trim() == b.content.trim();
        let turns = |messages: &[Message]| {
            messages.iter().filter(|message| message.role != "system").cloned().collect::<Vec<_>>()
        };
        let (given, found) = (turns(&beside), turns(&inside));
        // `prompt` may be the last question alone.
        if given.len() > found.len() || !given.iter().rev().zip(found.iter().rev()).all(|(a, b)| same(a, b)) {
            return Err(RowError::OtherPromptInside);
        }
        if let Some(system) = beside.first().filter(|first| first.role == "system")
            && inside.first().is_none_or(|first| first.role != "system")
        {
            inside.insert(0, system.clone());
        }
    }
    let prompt = with_system(row, inside)?;
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

/// The prompt of a row with a preference: a transcript is turns, and
/// "…\n\nAssistant:" at its end only opens the turn that the completion fills.
fn judged_prompt(row: &Row) -> RowResult<Prompt> {
    let prompt = prompt_of(row, QUESTIONS)?;
    let Prompt::Text(text) = &prompt else { return Ok(prompt) };
    Ok(match transcript(text) {
        Some(mut messages) => {
            messages.retain(|message| !message.content.is_empty());
            Prompt::Messages(messages)
        }
        None => prompt,
    })
}

/// A completion beside a prompt: a text or the assistant's messages.
fn completion_of(row: &Row, key: &str) -> RowResult<Vec<Message>> {
    match &row[key] {
        Value::Array(_) | Value::Object(_) => answer(side(row, key)?.unwrap_or_default(), key),
        _ => {
            let text = string(row, key)?;
            if text.trim().is_empty() {
                return Err(RowError::empty(key));
            }
            Ok(vec![Message::assistant(text)])
        }
    }
}

fn pair(row: &Row, prompt: Prompt, chosen: Vec<Message>, rejected: Vec<Message>) -> RowResult<Content> {
    if chosen == rejected {
        return Err(RowError::Same("chosen", "rejected"));
    }
    Ok(Content::Pair { prompt, chosen, rejected, extras: extras(row)? })
}

fn pair_row(row: &Row) -> RowResult<Content> {
    // Some sets repeat the prompt as the first turns of both sides.
    let (chosen, rejected) = (side(row, "chosen"), side(row, "rejected"));
    if let (Ok(Some(chosen)), Ok(Some(rejected))) = (chosen, rejected)
        && [&chosen, &rejected].iter().all(|side| side.first().is_some_and(|first| !first.is_assistant()))
    {
        return split_common(chosen, rejected, Some(judged_prompt(row)?), row);
    }
    let (chosen, rejected) = (completion_of(row, "chosen")?, completion_of(row, "rejected")?);
    pair(row, judged_prompt(row)?, chosen, rejected)
}

/// Whether the row's conversation has its answer already: then it only repeats the
/// chosen side.
fn holds_answer(row: &Row) -> bool {
    let messages = ["conversations", "messages"].iter().find_map(|key| row.get(*key)?.as_array());
    let last = messages.and_then(|messages| messages.last());
    let role = last.and_then(|last| last.get("role").or(last.get("from"))).and_then(Value::as_str);
    role.is_some_and(|role| ["assistant", "gpt", "model", "bot"].contains(&role.trim().to_lowercase().as_str()))
}

fn chat_pair_row(row: &Row) -> RowResult<Content> {
    let key = if given(row, "conversations") { "conversations" } else { "messages" };
    let prompt = Prompt::Messages(with_system(row, messages(list(row, key)?, key)?)?);
    pair(row, prompt, completion_of(row, "chosen")?, completion_of(row, "rejected")?)
}

fn openai_row(row: &Row) -> RowResult<Content> {
    let Some(Value::Object(input)) = row.get("input") else {
        return Err(RowError::value("input", row.get("input").map_or("nothing", kind_of), "an object with `messages`"));
    };
    let prompt = Prompt::Messages(messages(list(input, "messages")?, "input")?);
    let (chosen, rejected) = (completion_of(row, "preferred_output")?, completion_of(row, "non_preferred_output")?);
    if chosen == rejected {
        return Err(RowError::Same("preferred_output", "non_preferred_output"));
    }
    Ok(Content::Pair { prompt, chosen, rejected, extras: extras(input)? })
}

/// The two texts of `output`, the better one first.
fn two_answers(row: &Row) -> Option<(&str, &str)> {
    match row.get("output")?.as_array()?.as_slice() {
        [Value::String(better), Value::String(worse)] => Some((better, worse)),
        _ => None,
    }
}

fn output_pair_row(row: &Row) -> RowResult<Content> {
    let Some((better, worse)) = two_answers(row) else {
        return Err(RowError::value("output", kind_of(&row["output"]), "a list of two answers, the better one first"));
    };
    if better.trim().is_empty() || worse.trim().is_empty() {
        return Err(RowError::empty("output"));
    }
    let prompt = prompt_of(row, &["instruction"])?;
    pair(row, prompt, vec![Message::assistant(better)], vec![Message::assistant(worse)])
}

fn label_of(row: &Row) -> RowResult<bool> {
    let key = LABELS.iter().find(|key| given(row, key)).copied().unwrap_or("label");
    flag(row.get(key).unwrap_or(&Value::Null), key)
}

fn labelled_row(row: &Row) -> RowResult<Content> {
    let key = ANSWERS.iter().find(|key| given(row, key)).copied().unwrap_or("completion");
    let completion = match row.get(key) {
        Some(Value::Array(_) | Value::Object(_)) => completion_of(row, key)?,
        _ => {
            let (text, key) = answer_of(row, ANSWERS)?;
            if text.trim().is_empty() {
                return Err(RowError::empty(key));
            }
            vec![Message::assistant(text)]
        }
    };
    Ok(Content::Labelled { prompt: judged_prompt(row)?, completion, label: label_of(row)?, extras: extras(row)? })
}

fn labelled_chat_row(row: &Row) -> RowResult<Content> {
    let key = if given(row, "messages") { "messages" } else { "conversations" };
    let mut prompt = with_answer(messages(list(row, key)?, key)?, key)?;
    // The label judges the last answer; what follows it is no part of it.
    let last = prompt.iter().rposition(Message::is_assistant).unwrap_or_default();
    prompt.truncate(last + 1);
    let completion = prompt.pop().into_iter().collect();
    if prompt.iter().all(|message| message.role == "system") {
        return Err(RowError::NoQuestion(key.to_owned()));
    }
    Ok(Content::Labelled {
        prompt: Prompt::Messages(with_system(row, prompt)?),
        completion,
        label: label_of(row)?,
        extras: extras(row)?,
    })
}
