//! Values of a row by their keys.

use serde_json::Value;

use super::Row;
use crate::row_error::{RowError, RowResult};
use crate::template::Extras;

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
        Some(other) => Err(RowError::value(key, kind_of(other), "a string")),
        None => Err(RowError::missing(key)),
    }
}

/// The string at the first of `keys` that is there.
pub(super) fn string_of<'a>(row: &'a Row, keys: &[&'static str]) -> RowResult<(&'a str, &'static str)> {
    let key = keys.iter().find(|key| row.contains_key(**key)).unwrap_or(&keys[0]);
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

/// Tools and documents that a row brings for the template. Some datasets keep
/// tools as a string of JSON.
pub(super) fn extras(row: &Row) -> RowResult<Extras> {
    let read = |key: &'static str| match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) if items.is_empty() => Ok(None),
        Some(Value::Array(items)) => Ok(Some(Value::Array(items.clone()))),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => match serde_json::from_str(text) {
            Ok(Value::Array(items)) => Ok(Some(Value::Array(items))),
            _ => Err(RowError::NotAJsonList(key)),
        },
        Some(other) => Err(RowError::value(key, kind_of(other), "a list")),
    };
    Ok(Extras { tools: read("tools")?, documents: read("documents")? })
}
