//! JSON in which no object has a key twice and no number is rounded.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Any JSON.
///
/// # Errors
/// It is none, a key stands twice in an object, or a whole number is too long to be
/// kept (an error without a place; see [`long_integer`]).
pub(crate) fn json(text: &str) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let Checked(value) = Checked::deserialize(&mut deserializer)?;
    deserializer.end()?;
    match long_integer(text) {
        None => Ok(value),
        Some(_) => {
            let problem = "a whole number of more than 19 digits would be rounded: write it as a string";
            Err(serde_json::Error::custom(problem))
        }
    }
}

/// The text before the first whole number that neither 64 bits with a sign nor without
/// one hold.
pub(crate) fn long_integer(text: &str) -> Option<&str> {
    const SAFE_DIGITS: usize = 18;
    let has_run = text.as_bytes().split(|byte| !byte.is_ascii_digit()).any(|run| run.len() > SAFE_DIGITS);
    if !has_run {
        return None;
    }
    bare_words(text)
        .find(|(_, word)| {
            let digits = word.strip_prefix('-').unwrap_or(word);
            digits.len() > SAFE_DIGITS
                && digits.bytes().all(|byte| byte.is_ascii_digit())
                && word.parse::<i64>().is_err()
                && word.parse::<u64>().is_err()
        })
        .map(|(at, _)| &text[..at])
}

/// Numbers and words outside of strings, with their places.
pub(crate) fn bare_words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() {
            match bytes[at] {
                b'"' => {
                    at += 1;
                    while at < bytes.len() && bytes[at] != b'"' {
                        at += if bytes[at] == b'\\' { 2 } else { 1 };
                    }
                    at += 1;
                }
                byte if byte.is_ascii_alphanumeric() || byte == b'-' => {
                    let from = at;
                    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-._".contains(byte);
                    at += bytes[at..].iter().take_while(|byte| is_word(byte)).count();
                    return Some((from, &text[from..at]));
                }
                _ => at += 1,
            }
        }
        None
    })
}

/// A value none of whose objects has a key twice. serde_json keeps the last of the two
/// values without a word.
struct Checked(Value);

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Visit).map(Checked)
    }
}

struct Visit;

impl<'de> Visitor<'de> for Visit {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Bool(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Number::from_f64(number).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Checked(item)) = items.next_element()? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let Checked(value) = entries.next_value()?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("the key `{key}` stands twice in one object")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
