//! JSON lines, a JSON list, or a list inside a JSON object.
//!
//! They are one kind of file. Which of them a file is shows in its content alone,
//! because many `.json` files are JSON lines.

mod complete;
mod scan;
mod sniff;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::input::Input;
use super::{ParsedRow, RawRow, RowSource, Rows, foreign};
use crate::error::{DataError, Result};
use crate::format::kind_of;
use crate::row_error::{At, RowError, RowResult};
use scan::{Element, Scanner};
use sniff::{Layout, sniff};

/// Longer rows are refused one by one: a missing newline must not pull a whole
/// file into memory.
const LARGEST_ROW_BYTES: usize = 64 << 20;

const TOO_LARGE: RowError = RowError::TooLarge { limit: LARGEST_ROW_BYTES };

/// The kind of file.
pub(super) struct Json;

impl RowSource for Json {
    fn name(&self) -> &'static str {
        "JSON lines or JSON"
    }

    fn endings(&self) -> &'static [&'static str] {
        &[".jsonl", ".json", ".ndjson"]
    }

    fn recognises(&self, _name: &str, head: &[u8]) -> bool {
        foreign(head).is_none()
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Rows>> {
        let layout = sniff(path)?;
        let mut scanner = Scanner::new(Input::open(path)?);
        let read = DataError::reading(path);
        scanner.skip_byte_order_mark().map_err(read)?;
        let mode = match layout {
            Layout::Lines => Mode::Lines,
            Layout::Whole => Mode::Whole,
            Layout::Array => {
                scanner.enter_array().map_err(read)?;
                Mode::Array
            }
            Layout::Inside => {
                scanner.enter_first_list(&[]).map_err(read)?;
                Mode::Array
            }
        };
        Ok(Box::new(JsonRows { path: path.to_owned(), scanner, mode }))
    }

    fn what_is_missing(&self, name: &str, file: &mut File) -> io::Result<Option<String>> {
        complete::what_is_missing(name, file)
    }
}

/// An open file.
struct JsonRows {
    path: PathBuf,
    scanner: Scanner,
    mode: Mode,
}

enum Mode {
    Lines,
    Array,
    Whole,
    Done,
}

impl Rows for JsonRows {
    fn next(&mut self) -> Result<Option<RawRow>> {
        let row = match self.mode {
            Mode::Lines => self.next_line(),
            Mode::Array => self.next_element(),
            Mode::Whole => {
                self.mode = Mode::Done;
                let rest = self.scanner.rest(LARGEST_ROW_BYTES);
                rest.map(|(line, bytes)| Some(row(line, bytes.ok_or(TOO_LARGE), true)))
            }
            Mode::Done => Ok(None),
        };
        row.map_err(DataError::reading(&self.path))
    }

    fn finish(self: Box<Self>) -> Result<String> {
        self.scanner.into_input().finish().map_err(DataError::reading(&self.path))
    }
}

impl JsonRows {
    /// The next line that is not blank.
    fn next_line(&mut self) -> io::Result<Option<RawRow>> {
        loop {
            let Some((line, bytes, ended)) = self.scanner.line(LARGEST_ROW_BYTES)? else {
                return Ok(None);
            };
            let Some(mut bytes) = bytes else { return Ok(Some(row(line, Err(TOO_LARGE), false))) };
            while bytes.last().is_some_and(u8::is_ascii_whitespace) {
                bytes.pop();
            }
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            return Ok(Some(row(line, Ok(bytes), !ended)));
        }
    }

    fn next_element(&mut self) -> io::Result<Option<RawRow>> {
        let bad = match self.scanner.element(LARGEST_ROW_BYTES)? {
            Element::Value { line, bytes } => return Ok(Some(row(line, Ok(bytes), false))),
            Element::End => None,
            Element::TooLarge { line } => Some(row(line, Err(TOO_LARGE), false)),
            Element::CutOff { line } => Some(row(line, Err(RowError::ListCutOff), false)),
        };
        self.mode = Mode::Done;
        Ok(bad)
    }
}

/// A row that begins on `line`. `at_end`: the file ends right after it, without a
/// newline.
fn row(line: usize, bytes: RowResult<Vec<u8>>, at_end: bool) -> RawRow {
    RawRow { line, parse: Box::new(move || parse(line, &bytes?, at_end)) }
}

/// The row as a JSON object.
fn parse(line: usize, bytes: &[u8], at_end: bool) -> ParsedRow {
    let at = |(lines, column): (usize, usize)| At { line: (lines > 1).then(|| line + lines - 1), column };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let first = error.valid_up_to();
        RowError::NotUtf8 { byte: bytes[first], at: at(end_of(&bytes[..first])) }
    })?;
    let error = match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(map)) => return Ok(map),
        Ok(other) => return Err(RowError::NotAnObject { got: kind_of(&other) }),
        Err(error) => error,
    };
    if error.is_eof() && at_end {
        return Err(RowError::LineCutOff);
    }
    let message = error.to_string();
    let problem = message.split(" at line ").next().unwrap_or(&message).to_owned();
    Err(RowError::NotJson { problem, at: at((error.line(), error.column())) })
}

/// Line and column, from 1, of what follows `before`.
fn end_of(before: &[u8]) -> (usize, usize) {
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
    (line, column)
}
