//! JSON lines, a JSON list, or a list inside a JSON object.
//!
//! They are one kind of file. Which of them a file is shows in its content alone,
//! because many `.json` files are JSON lines.

mod complete;
mod scan;
mod sniff;
mod value;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::foreign::foreign;
use super::input::Input;
use super::{RawRow, RowSource, Rows};
use crate::error::{DataError, Result};
use crate::row_error::{RowError, RowResult};
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

    fn recognises(&self, name: &str, head: &[u8]) -> bool {
        foreign(name, head).is_none()
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
            Layout::Inside(key) => {
                scanner.enter_list(&key).map_err(read)?;
                Mode::Inside
            }
            Layout::Loose => Mode::Loose,
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
    /// One list, or several one after another.
    Array,
    /// A list in an object whose other keys were looked at before.
    Inside,
    Loose,
    Whole,
    Done,
}

impl Rows for JsonRows {
    fn next(&mut self) -> Result<Option<RawRow>> {
        let row = match self.mode {
            Mode::Lines => self.next_line(),
            Mode::Array | Mode::Inside | Mode::Loose => return self.next_element(),
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

    fn next_element(&mut self) -> Result<Option<RawRow>> {
        let read = DataError::reading(&self.path);
        let bad = loop {
            match self.scanner.element(LARGEST_ROW_BYTES, matches!(self.mode, Mode::Loose)).map_err(read)? {
                Element::Value { line, bytes } => return Ok(Some(row(line, Ok(bytes), false))),
                Element::TooLarge { line } => break Some(row(line, Err(TOO_LARGE), false)),
                Element::CutOff { line } => break Some(row(line, Err(RowError::ListCutOff), false)),
                Element::End if !matches!(self.mode, Mode::Array) => break None,
                Element::End => match self.scanner.peek_past_blanks().map_err(read)? {
                    None => break None,
                    // Lists that were joined by `cat`.
                    Some(b'[') => self.scanner.enter_array().map_err(read)?,
                    Some(_) => {
                        let line = self.scanner.at_line();
                        return Err(DataError::File {
                            path: self.path.clone(),
                            problem: format!("the list of rows ends, and something else follows on line {line}"),
                            remedy: "Remove it, or write one object per line.".into(),
                        });
                    }
                },
            }
        };
        self.mode = Mode::Done;
        Ok(bad)
    }
}

/// A row that begins on `line`. `at_end`: the file ends right after it, without a
/// newline.
fn row(line: usize, bytes: RowResult<Vec<u8>>, at_end: bool) -> RawRow {
    let size = bytes.as_ref().map_or(0, Vec::len);
    RawRow { line, bytes: size, parse: Box::new(move || value::parse(line, &bytes?, at_end)) }
}
