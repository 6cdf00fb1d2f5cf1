//! How the rows lie in a file, decided from its content rather than its name: many
//! `.json` files are JSON lines.

use std::io::{self, BufRead};
use std::path::Path;

use serde_json::{Map, Value};

use super::LARGEST_ROW_BYTES;
use super::scan::{Element, Scanner, Shape};
use super::value::is_conversation;
use crate::error::{DataError, Result};
use crate::format::{Format, list_keys};
use crate::json::json;
use crate::rows::input::Input;

/// Where a file's rows are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    /// One object per line.
    Lines,
    /// One list of objects.
    Array,
    /// The list of objects at this key of one object.
    Inside(String),
    /// One object that is itself the only row.
    Whole,
    /// Objects or conversations one after another, over any lines, with commas or
    /// without.
    Loose,
}

/// Where the rows of a file are.
///
/// # Errors
/// [`DataError::Read`], and [`DataError::File`] for a file that is empty, or that holds
/// something else than rows.
pub(super) fn sniff(path: &Path) -> Result<Layout> {
    let read = DataError::reading(path);
    let mut scanner = scanner(path)?;
    let opening = scanner.peek_past_blanks().map_err(read)?;
    if opening == Some(b'[') {
        return list_layout(&mut scanner).map_err(read);
    }
    let first = match scanner.line(LARGEST_ROW_BYTES).map_err(read)? {
        None => {
            return Err(DataError::File {
                path: path.to_owned(),
                problem: "the file is empty".into(),
                remedy: "Give it at least one row.".into(),
            });
        }
        // One endless line: an object with a list inside, or nothing usable.
        Some((_, None, _)) => return object_layout(path),
        Some((_, Some(line), _)) => line,
    };
    if opening != Some(b'{') {
        return Ok(Layout::Lines);
    }
    let row = std::str::from_utf8(&first).ok().map(json);
    match row {
        Some(Ok(Value::Object(map))) => {
            let alone = only_blank(&mut scanner.into_input()).map_err(read)?;
            let is_row = Format::of(&map).is_some() && !holds_columns(&map);
            if alone && !is_row { object_layout(path) } else { Ok(Layout::Lines) }
        }
        Some(Err(error)) if error.is_eof() => {
            if is_spread(&mut scanner).map_err(read)? {
                object_layout(path)
            } else {
                Ok(Layout::Lines)
            }
        }
        _ => Ok(if goes_on_in_line(&first).map_err(read)? { Layout::Loose } else { Layout::Lines }),
    }
}

fn scanner(path: &Path) -> Result<Scanner> {
    let mut scanner = Scanner::new(Input::open(path)?);
    scanner.skip_byte_order_mark().map_err(DataError::reading(path))?;
    Ok(scanner)
}

/// The layout of a file that begins with `[`: a list of rows, or one conversation of
/// several, each a list of messages.
fn list_layout(scanner: &mut Scanner) -> io::Result<Layout> {
    scanner.enter_array()?;
    let Element::Value { bytes, .. } = scanner.element(LARGEST_ROW_BYTES, false)? else {
        return Ok(Layout::Array);
    };
    let first = std::str::from_utf8(&bytes).ok().and_then(|text| json(text).ok());
    Ok(if first.is_some_and(|first| is_conversation(&[first])) { Layout::Loose } else { Layout::Array })
}

/// Whether a line holds a whole object and another, or a comma, behind it.
fn goes_on_in_line(line: &[u8]) -> io::Result<bool> {
    let mut scanner = Scanner::new(line);
    Ok(scanner.skip_value()? && matches!(scanner.peek_past_blanks()?, Some(b',' | b'{')))
}

/// Whether the object that the first line opens goes on over the next lines,
/// rather than being cut off: the next line opens none of its own.
fn is_spread(scanner: &mut Scanner) -> io::Result<bool> {
    while let Some((_, Some(line), _)) = scanner.line(LARGEST_ROW_BYTES)? {
        if let Some(first) = line.trim_ascii_start().first() {
            return Ok(*first != b'{');
        }
    }
    Ok(false)
}

/// Whether every value is a list of texts, or an object under numbers: columns, as
/// datasets and pandas have them.
fn holds_columns(map: &Map<String, Value>) -> bool {
    let is_column = |value: &Value| match value {
        Value::Array(items) => !items.is_empty() && items.iter().all(Value::is_string),
        Value::Object(rows) => !rows.is_empty() && rows.keys().all(|key| key.parse::<u64>().is_ok()),
        _ => false,
    };
    !map.is_empty() && map.values().all(is_column)
}

/// The layout of a file that begins with an object over all of it, or over several
/// lines.
fn object_layout(path: &Path) -> Result<Layout> {
    let read = DataError::reading(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let refuse = |problem: String, remedy: String| Err(DataError::File { path: path.to_owned(), problem, remedy });
    // The object may be one of many.
    let mut whole = scanner(path)?;
    let is_closed = whole.skip_value().map_err(read)?;
    match whole.peek_past_blanks().map_err(read)? {
        Some(b'{' | b',') if is_closed => return Ok(Layout::Loose),
        Some(_) if is_closed => {
            let line = whole.at_line();
            return refuse(
                format!("the object ends, and something else follows on line {line}"),
                "Write one object per line, or one list of them.".into(),
            );
        }
        _ => {}
    }
    let mut scanner = scanner(path)?;
    scanner.enter_object().map_err(read)?;
    let mut shapes: Vec<(String, Shape)> = Vec::new();
    while let Some(key) = scanner.key().map_err(read)? {
        shapes.push((key, scanner.shape().map_err(read)?));
    }
    let lists = list_keys();
    let rows: Vec<&str> = shapes
        .iter()
        .filter(|(key, shape)| *shape == Shape::Objects && !lists.contains(&key.as_str()))
        .map(|(key, _)| key.as_str())
        .collect();
    let has = |key: &str| shapes.iter().any(|(found, _)| found == key);
    let all = |fits: &dyn Fn(&Shape) -> bool| !shapes.is_empty() && shapes.iter().all(|(_, shape)| fits(shape));
    let convert = |read: &str| {
        format!(
            "Write one object per row: python -c \"import pandas; pandas.{read}.to_json('rows.jsonl', \
             orient='records', lines=True, force_ascii=False)\"."
        )
    };
    match rows.as_slice() {
        ["features", "rows"] => refuse(
            "this is an answer of the hub's dataset viewer: each row is wrapped".into(),
            format!("Take the rows out: jq -c '.rows[].row' {name} > rows.jsonl."),
        ),
        [_, _, ..] => {
            let named: Vec<String> = rows.iter().map(|key| format!("`{key}`")).collect();
            let count = rows.len();
            let one = rows.iter().find(|key| **key == "train").unwrap_or(&rows[0]);
            refuse(
                format!("the file holds {count} lists of rows: {}", named.join(", ")),
                format!(
                    "Which of them is to be trained on is not said: write each to a file of its own, like \
                     jq -c '.{one}[]' {name} > {one}.jsonl; name the validation rows' file in the recipe, or as --validation."
                ),
            )
        }
        [key] => Ok(Layout::Inside((*key).to_owned())),
        [] if has("columns") && has("data") => refuse(
            "the rows are lists without keys (pandas' `split`)".into(),
            convert(&format!("read_json('{name}', orient='split')")),
        ),
        [] if all(&|shape| *shape == Shape::Scalars) && !shapes.iter().any(|(key, _)| key.ends_with("ids")) => {
            refuse("the file holds columns, each a list, and not rows".into(), convert(&format!("read_json('{name}')")))
        }
        [] if all(&|shape| matches!(shape, Shape::Object { .. })) => {
            let by_number = |shape: &Shape| match shape {
                Shape::Object { first_key } => first_key.parse::<u64>().is_ok(),
                _ => false,
            };
            if all(&by_number) {
                return refuse(
                    "the file holds columns, with each row's value under its number (pandas' to_json)".into(),
                    convert(&format!("read_json('{name}')")),
                );
            }
            refuse(
                "each row is the value of a key of one object".into(),
                format!("Write the rows alone: jq -c '.[]' {name} > rows.jsonl."),
            )
        }
        [] => Ok(Layout::Whole),
    }
}

/// Whether anything but white space is left.
fn only_blank(input: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let chunk = input.fill_buf()?;
        if chunk.is_empty() {
            return Ok(true);
        }
        if !chunk.iter().all(u8::is_ascii_whitespace) {
            return Ok(false);
        }
        let length = chunk.len();
        input.consume(length);
    }
}
