//! One row's bytes as a JSON object, with what JSON lets pass or what people bring
//! instead of it: keys that stand twice, NaN, Python's words, numbers that would be
//! rounded.

use serde_json::{Map, Value};

use crate::format::kind_of;
use crate::json::{bare_words, json, long_integer};
use crate::row_error::{At, RowError};
use crate::rows::ParsedRow;

/// The row as a JSON object. A list of messages is a conversation.
///
/// `line` is the row's first line in its file. `at_end`: the file ends right after
/// it, without a newline.
pub(super) fn parse(line: usize, bytes: &[u8], at_end: bool) -> ParsedRow {
    let at = |(lines, column): (usize, usize)| At { line: (lines > 1).then(|| line + lines - 1), column };
    if bytes.iter().all(|byte| *byte == 0 || byte.is_ascii_whitespace()) {
        return Err(RowError::NulBytes);
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let first = error.valid_up_to();
        RowError::NotUtf8 { byte: bytes[first], at: at(end_of(&bytes[..first])) }
    })?;
    let mut read = json(text);
    if read.is_err()
        && let Some(mended) = nan_as_null(text)
    {
        read = json(&mended);
    }
    let error = match read {
        Ok(value) => {
            return match value {
                Value::Object(map) => Ok(map),
                Value::Array(items) if is_conversation(&items) => {
                    Ok(Map::from_iter([("messages".to_owned(), Value::Array(items))]))
                }
                other => Err(RowError::NotAnObject { got: kind_of(&other) }),
            };
        }
        Err(error) => error,
    };
    if error.is_eof() && at_end {
        return Err(RowError::LineCutOff);
    }
    if let Some(before) = long_integer(text).filter(|_| error.line() == 0) {
        return Err(RowError::NotJson { problem: error.to_string(), at: at(end_of(before.as_bytes())) });
    }
    let place = at((error.line(), error.column()));
    Err(RowError::NotJson { problem: problem(text, &error), at: place })
}

/// Whether a list holds the messages of one conversation.
pub(super) fn is_conversation(items: &[Value]) -> bool {
    let is_message = |item: &Value| item.get("role").or(item.get("from")).is_some_and(Value::is_string);
    !items.is_empty() && items.iter().all(is_message)
}

/// What is wrong with a text that is no JSON.
fn problem(text: &str, error: &serde_json::Error) -> String {
    for (at, token) in bare_words(text) {
        match token {
            "True" | "False" | "None" => {
                return format!(
                    "`{token}` is Python's word, JSON writes {}",
                    if token == "None" { "null" } else { "true and false" }
                );
            }
            "Infinity" | "inf" => return "Infinity is no JSON: write null".into(),
            "NaN" | "nan" => return "NaN is no JSON: write null or \"\"".into(),
            _ if text[..at].ends_with('\'') => {
                return "single quotes, as Python prints them: JSON has double quotes".into();
            }
            _ => {}
        }
    }
    let message = error.to_string();
    message.split(" at line ").next().unwrap_or(&message).to_owned()
}

/// The text with each `NaN` outside of strings as `null`: pandas writes empty cells
/// so, and Python reads them. `None` if there is none.
fn nan_as_null(text: &str) -> Option<String> {
    if !text.contains("NaN") {
        return None;
    }
    let (mut out, mut from) = (String::with_capacity(text.len()), 0);
    for (at, word) in bare_words(text).filter(|(_, word)| *word == "NaN") {
        out += &text[from..at];
        out += "null";
        from = at + word.len();
    }
    (from > 0).then(|| out + &text[from..])
}

/// Line and column, from 1, of what follows `before`.
fn end_of(before: &[u8]) -> (usize, usize) {
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reason(text: &str) -> String {
        parse(3, text.as_bytes(), false).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_json_is_named() {
        for (text, expected) in [
            (r#"{"a": 1, "a": 2}"#, "not JSON: the key `a` stands twice in one object at column 16"),
            (r#"{"m": [{"a": 1, "a": 2}]}"#, "not JSON: the key `a` stands twice in one object at column 23"),
            (r#"{"a": True}"#, "not JSON: `True` is Python's word, JSON writes true and false at column 7"),
            (r#"{"a": None}"#, "not JSON: `None` is Python's word, JSON writes null at column 7"),
            (r#"{'a': 1}"#, "not JSON: single quotes, as Python prints them: JSON has double quotes at column 2"),
            (r#"{"a": -Infinity}"#, "not JSON: expected value"),
            (r#"{"a": Infinity}"#, "not JSON: Infinity is no JSON: write null at column 7"),
            ("\0\0\0", "a run of NUL bytes: the file was damaged by a crash or a full disk, copy it again"),
            (
                r#"{"a": 123456789012345678901}"#,
                "not JSON: a whole number of more than 19 digits would be rounded: write it as a string at column 7",
            ),
        ] {
            let reason = reason(text);
            assert!(reason.starts_with(expected.trim_end_matches("expected value")), "{text}: {reason}");
        }
    }

    #[test]
    fn empty_cells_of_pandas_are_null() {
        let row = parse(1, br#"{"a": NaN, "b": "NaN", "c": [NaN]}"#, false).unwrap();
        assert_eq!(Value::Object(row), json!({"a": null, "b": "NaN", "c": [null]}));
    }

    #[test]
    fn large_numbers_that_fit_are_kept() {
        let text =
            r#"{"a": 18446744073709551615, "b": -9223372036854775808, "c": "123456789012345678901", "d": 1.5e300}"#;
        let row = parse(1, text.as_bytes(), false).unwrap();
        assert_eq!(row["a"].as_u64(), Some(u64::MAX));
        assert_eq!(row["b"].as_i64(), Some(i64::MIN));
    }

    #[test]
    fn a_list_of_messages_is_a_conversation() {
        let row = parse(1, br#"[{"role": "user", "content": "a"}]"#, false).unwrap();
        assert!(row.contains_key("messages"));
        assert_eq!(reason("[1]"), "expected a JSON object, got a list");
        assert_eq!(reason("[]"), "expected a JSON object, got a list");
    }
}
