//! Values of a row by their keys.

use serde_json::Value;

use super::Row;
use crate::row_error::{RowError, RowResult};

/// What a JSON value is, in words.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The string at `key`.
pub(super) fn string<'a>(row: &'a Row, key: &str) -> RowResult<&'a str> {
    match row.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(RowError::not_a_text(key, kind_of(other))),
        None => Err(RowError::missing(key)),
    }
}

/// The string at the first of `keys` that has a value, and the key.
pub(super) fn answer_of<'a>(row: &'a Row, keys: &[&'static str]) -> RowResult<(&'a str, &'static str)> {
    let key = keys.iter().find(|key| super::given(row, key)).or(keys.first()).copied().unwrap_or_default();
    Ok((string(row, key)?, key))
}

/// The list at `key`.
pub(super) fn list<'a>(row: &'a Row, key: &str) -> RowResult<&'a [Value]> {
    match row.get(key) {
        Some(Value::Array(items)) => Ok(items),
        Some(other) => Err(RowError::value(key, kind_of(other), "a list")),
        None => Err(RowError::missing(key)),
    }
}

/// True for `true` and `1`, false for `false` and `0`.
pub(super) fn flag(value: &Value, name: &str) -> RowResult<bool> {
    match value {
        Value::Bool(flag) => Ok(*flag),
        Value::Number(number) if number.as_f64() == Some(0.0) => Ok(false),
        Value::Number(number) if number.as_f64() == Some(1.0) => Ok(true),
        other => Err(RowError::value(name, other, "true or false")),
    }
}

/// A weight in the loss: a number of 0 or more, or `true` or `false`.
pub(super) fn weight(value: &Value, name: &str) -> RowResult<f32> {
    let number = match value {
        Value::Bool(flag) => Some(f32::from(*flag)),
        other => other.as_f64().map(|number| number as f32),
    };
    number
        .filter(|number| number.is_finite() && *number >= 0.0)
        .ok_or_else(|| RowError::value(name, value, "a number of 0 or more"))
}
