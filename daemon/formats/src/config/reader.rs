//! Typed reads from a JSON object, with errors that name file and key.

use crate::error::FormatError;
use serde_json::{Map, Value};
use std::path::Path;

/// A JSON object, where it stands, and the file it is from.
pub(crate) struct Reader<'a> {
    object: &'a Map<String, Value>,
    pub(crate) path: &'a Path,
    /// "" at the top level, else "rope_parameters." and so on, for messages.
    prefix: String,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(object: &'a Map<String, Value>, path: &'a Path) -> Reader<'a> {
        Reader { object, path, prefix: String::new() }
    }

    pub(crate) fn within(object: &'a Map<String, Value>, path: &'a Path, key: &str) -> Reader<'a> {
        Reader { object, path, prefix: format!("{key}.") }
    }

    pub(crate) fn wrong(&self, key: &str, expected: impl Into<String>, got: impl Into<String>) -> FormatError {
        FormatError::setting(self.path, format!("{}{key}", self.prefix), expected, got)
    }

    /// Whether the key is there at all, `null` included: several defaults
    /// apply to an absent key and not to a null one.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>, FormatError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        // Some configs write whole numbers as 4096.0.
        let whole = value
            .as_u64()
            .or_else(|| value.as_f64().filter(|x| x.fract() == 0.0 && *x >= 0.0 && *x < 1e15).map(|x| x as u64));
        match whole.and_then(|x| usize::try_from(x).ok()) {
            Some(size) => Ok(Some(size)),
            None => Err(self.wrong(key, "a whole number", value.to_string())),
        }
    }

    pub(crate) fn size_or(&self, key: &str, default: usize) -> Result<usize, FormatError> {
        Ok(self.size(key)?.unwrap_or(default))
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, FormatError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(key, "a number", value.to_string())),
        }
    }

    pub(crate) fn number_or(&self, key: &str, default: f64) -> Result<f64, FormatError> {
        Ok(self.number(key)?.unwrap_or(default))
    }

    pub(crate) fn number_needed(&self, key: &str) -> Result<f64, FormatError> {
        self.number(key)?.ok_or_else(|| self.wrong(key, "a number", "nothing"))
    }

    pub(crate) fn flag_or(&self, key: &str, default: bool) -> Result<bool, FormatError> {
        match self.value(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(key, "true or false", other.to_string())),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, FormatError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, "a string", other.to_string())),
        }
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>, FormatError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(other) => Err(self.wrong(key, "an object", other.to_string())),
        }
    }

    pub(crate) fn list(&self, key: &str) -> Result<Option<&'a Vec<Value>>, FormatError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(self.wrong(key, "a list", other.to_string())),
        }
    }

    /// A token id. transformers writes -1 for "none" in some old configs.
    pub(crate) fn token(&self, key: &str) -> Result<Option<u32>, FormatError> {
        match self.value(key) {
            None => Ok(None),
            Some(value) if value.as_i64() == Some(-1) => Ok(None),
            Some(value) => token_id(value).map(Some).ok_or_else(|| self.wrong(key, "a token id", value.to_string())),
        }
    }

    /// Token ids: one number or a list.
    pub(crate) fn tokens(&self, key: &str) -> Result<Vec<u32>, FormatError> {
        match self.value(key) {
            Some(Value::Array(list)) => list
                .iter()
                .map(|value| token_id(value).ok_or_else(|| self.wrong(key, "a list of token ids", value.to_string())))
                .collect(),
            _ => Ok(self.token(key)?.into_iter().collect()),
        }
    }
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}
