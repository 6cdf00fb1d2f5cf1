//! What the keys of a row mean beside those that its format reads: each is harmless,
//! contradicts the format, or is named in the report as unused.

use serde_json::Value;

use super::{Format, Layout, Row};
use crate::example::DataKind;
use crate::row_error::{RowError, RowResult};

/// Keys that say where a row comes from and what it is about, and nothing that a model
/// could learn.
const HARMLESS: &[&str] = &[
    "__index_level_0__",
    "_id",
    "annotator",
    "annotators",
    "author",
    "categories",
    "category",
    "conversation_hash",
    "conversation_id",
    "created",
    "created_at",
    "data_source",
    "dataset",
    "dataset_name",
    "date",
    "difficulty",
    "domain",
    "generator",
    "guid",
    "hash",
    "id",
    "idx",
    "index",
    "instruction_id",
    "lang",
    "language",
    "length",
    "license",
    "link",
    "message_id",
    "meta",
    "metadata",
    "model",
    "model_name",
    "num_tokens",
    "num_turns",
    "origin",
    "prompt_id",
    "question_id",
    "row_id",
    "row_idx",
    "sha256",
    "source",
    "source_dataset",
    "sources",
    "split",
    "subject",
    "subset",
    "tag",
    "tags",
    "task",
    "task_id",
    "task_name",
    "task_type",
    "timestamp",
    "token_count",
    "topic",
    "uid",
    "url",
    "user_id",
    "uuid",
];

/// Keys of a message that name it and are not part of what it says.
const HARMLESS_IN_MESSAGES: &[&str] =
    &["id", "message_id", "name", "refusal", "role", "timestamp", "tool_call_id", "tool_name"];

/// Keys that judge a row. Beside rows to imitate they say that the answer may not be
/// one to imitate.
const VERDICTS: &[&str] =
    &["desirable", "is_desirable", "kto_tag", "label", "labels", "preference", "rating", "reward"];

/// Keys that say how much of a row is to be learned.
const MASKS: &[&str] = &["loss_mask", "train", "train_detail", "training", "weight"];

/// Keys of what is not text.
const MEDIA: &[&str] = &["audio", "audios", "image", "images", "video", "videos"];

/// Keys of one message of a tree or a log, where a row is not a document of its own.
const PARTS: &[&str] = &["from", "parent_id", "role"];

/// Whether a key has a value: null, an empty text and an empty list or object are none.
pub(super) fn is_given(row: &Row, key: &str) -> bool {
    row.get(key).is_some_and(|value| match value {
        Value::Null => false,
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    })
}

/// Refuses a row with a key that its format does not read and that says that the row
/// means something else. `columns` are the keys that the loss reads.
///
/// # Errors
/// The key.
pub(super) fn refuse_contradictions(format: &Format, row: &Row, columns: &[String]) -> RowResult<()> {
    let given = |keys: &[&'static str]| {
        let read = |key: &&&'static str| format.reads(key) || columns.iter().any(|column| column == **key);
        keys.iter().filter(|key| !read(key)).find(|key| is_given(row, key)).copied()
    };
    if let Some(key) = given(MEDIA) {
        return Err(RowError::Media(key));
    }
    if format.layout != Layout::Ids
        && let Some(key) = given(MASKS)
        && !matches!(&row[key], Value::Bool(true))
        && row[key].as_f64() != Some(1.0)
    {
        return Err(RowError::RowMask(key));
    }
    if format.kind == DataKind::Supervised
        && let Some(key) = given(VERDICTS)
    {
        return Err(RowError::Verdict { key, format: format.name });
    }
    if format.layout == Layout::Text
        && let Some(key) = given(PARTS)
    {
        return Err(RowError::PartOfConversation(key));
    }
    Ok(())
}

/// The keys of a row that nothing reads and that may hold something to learn.
pub(super) fn unused(format: &Format, row: &Row, columns: &[String]) -> Vec<String> {
    let texts = texts(format, row);
    row.keys()
        .filter(|key| {
            !format.reads(key)
                && !HARMLESS.contains(&key.as_str())
                && !columns.contains(key)
                && is_given(row, key)
                && !is_repetition(&row[key.as_str()], &texts)
        })
        .cloned()
        .collect()
}

/// Keys of messages that the template does not name.
pub(crate) fn is_harmless_in_messages(key: &str) -> bool {
    HARMLESS_IN_MESSAGES.contains(&key)
}

/// The texts that a row's format reads: the texts of its messages, and its own.
fn texts<'r>(format: &Format, row: &'r Row) -> Vec<&'r str> {
    let values = row.iter().filter(|(key, _)| format.reads(key)).map(|(_, value)| value);
    values.flat_map(texts_of).collect()
}

fn texts_of(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text.trim()],
        Value::Array(items) => items
            .iter()
            .filter_map(|item| item.get("content").or(item.get("value")).unwrap_or(item).as_str())
            .map(str::trim)
            .collect(),
        _ => Vec::new(),
    }
}

/// Whether a value says only what the format reads elsewhere: many sets keep the first
/// question as `prompt` beside `messages`, or the chosen conversation as `messages`.
fn is_repetition(value: &Value, texts: &[&str]) -> bool {
    let own = texts_of(value);
    !own.is_empty() && own.iter().all(|text| texts.contains(text))
}
