//! Rows of a file, one at a time: JSON lines, a JSON array, or a list inside a
//! JSON object; plain or gzip.

mod input;
mod scan;
mod sniff;

use std::io::BufRead;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{DataError, Result};
use input::Input;
use scan::{Element, Scanner};
use sniff::{Layout, sniff};

/// Longer rows are refused one by one: a missing newline must not pull a whole
/// file into memory.
pub(crate) const LARGEST_ROW_BYTES: usize = 64 << 20;

/// The bytes of one row, or why there are none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RawRow {
    /// Line the row begins on, from 1.
    pub line: usize,
    pub bytes: std::result::Result<Vec<u8>, String>,
    /// Whether the file ended right behind it, without a newline.
    pub at_end: bool,
}

impl RawRow {
    fn bad(line: usize, reason: impl Into<String>) -> Self {
        Self { line, bytes: Err(reason.into()), at_end: false }
    }

    /// The row as a JSON object.
    ///
    /// # Errors
    /// The reason, in words for the user.
    pub fn parse(&self) -> std::result::Result<Map<String, Value>, String> {
        let bytes = self.bytes.as_ref().map_err(Clone::clone)?;
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let at = error.valid_up_to();
            let (line, column) = place(&bytes[..at]);
            let line = if line > 1 { format!("line {}, ", self.line + line - 1) } else { String::new() };
            format!("not UTF-8: byte 0x{:02x} at {line}column {column}", bytes[at])
        })?;
        let error = match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(map)) => return Ok(map),
            Ok(other) => {
                return Err(format!("expected a JSON object, got {}", kind_of(&other)));
            }
            Err(error) => error,
        };
        if error.is_eof() && self.at_end {
            return Err("the line is cut off: the file looks incomplete".into());
        }
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or(&message);
        let line = if error.line() > 1 { format!("line {}, ", self.line + error.line() - 1) } else { String::new() };
        Err(format!("not JSON: {message} at {line}column {}", error.column()))
    }
}

/// Line and column, from 1, of what follows `before`.
fn place(before: &[u8]) -> (usize, usize) {
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
    (line, column)
}

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

/// Reads a file's rows in order, and its hash.
pub(crate) struct RowReader {
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

impl RowReader {
    /// # Errors
    /// [`DataError::Read`], and [`DataError::File`] for what is no JSON.
    pub fn open(path: &Path) -> Result<Self> {
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
        Ok(Self { path: path.to_owned(), scanner, mode })
    }

    /// The next row; blank lines are none.
    ///
    /// # Errors
    /// [`DataError::Read`].
    pub fn next(&mut self) -> Result<Option<RawRow>> {
        let row = match self.mode {
            Mode::Lines => self.next_line(),
            Mode::Array => self.next_element(),
            Mode::Whole => {
                self.mode = Mode::Done;
                self.scanner
                    .rest(LARGEST_ROW_BYTES)
                    .map(|(line, bytes)| Some(RawRow { line, bytes: bytes.ok_or_else(too_large), at_end: true }))
            }
            Mode::Done => Ok(None),
        };
        row.map_err(DataError::reading(&self.path))
    }

    /// Reads what is left and returns the SHA-256 of the file's bytes, in hex.
    ///
    /// # Errors
    /// [`DataError::Read`].
    pub fn finish(self) -> Result<String> {
        self.scanner.into_input().finish().map_err(DataError::reading(&self.path))
    }

    fn next_line(&mut self) -> std::io::Result<Option<RawRow>> {
        loop {
            let Some((line, bytes, ended)) = self.scanner.line(LARGEST_ROW_BYTES)? else {
                return Ok(None);
            };
            let Some(mut bytes) = bytes else { return Ok(Some(RawRow::bad(line, too_large()))) };
            while bytes.last().is_some_and(u8::is_ascii_whitespace) {
                bytes.pop();
            }
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            return Ok(Some(RawRow { line, bytes: Ok(bytes), at_end: !ended }));
        }
    }

    fn next_element(&mut self) -> std::io::Result<Option<RawRow>> {
        let row = match self.scanner.element(LARGEST_ROW_BYTES)? {
            Element::Value { line, bytes } => {
                return Ok(Some(RawRow { line, bytes: Ok(bytes), at_end: false }));
            }
            Element::End => None,
            Element::TooLarge { line } => Some(RawRow::bad(line, too_large())),
            Element::CutOff { line } => Some(RawRow::bad(line, "the file ends inside the list: it looks incomplete")),
        };
        self.mode = Mode::Done;
        Ok(row)
    }
}

fn too_large() -> String {
    format!("the row is larger than {} MiB", LARGEST_ROW_BYTES >> 20)
}

/// Whether anything but white space is left.
pub(crate) fn only_blank(input: &mut impl BufRead) -> std::io::Result<bool> {
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
