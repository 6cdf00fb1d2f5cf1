//! Rows of a file, one at a time, whatever kind of file it is.
//!
//! A kind of file is a [`RowSource`] and a line of [`SOURCES`]. The endings of
//! its names, the way to know its content, its rows and the way to tell a file
//! that is cut off all belong to it; the inbox asks for them here.

mod input;
mod json;

use std::fs::File;
use std::io;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{DataError, FileProblem, Result};
use crate::place::Place;
use crate::row_error::RowError;

/// The kinds of files, in order of precedence: the first that recognises a file
/// reads it. JSON is last, because it takes what no other kind does and says
/// what is wrong with it.
const SOURCES: &[&dyn RowSource] = &[&json::Json];

/// A kind of file that rows are read from.
pub(crate) trait RowSource: Sync {
    /// The endings of its files' names, in order of precedence, in lower case.
    fn endings(&self) -> &'static [&'static str];

    /// Whether a file of this name whose (unpacked) content begins with `head` is
    /// of this kind.
    fn recognises(&self, name: &str, head: &[u8]) -> bool;

    /// Opens a file that was recognised.
    ///
    /// # Errors
    /// [`DataError::Read`], and [`DataError::File`] if it cannot be used.
    fn open(&self, path: &Path) -> Result<Box<dyn Rows>>;

    /// Why a file at rest looks cut off, in words, if it does; see
    /// [`what_is_missing`].
    ///
    /// # Errors
    /// Reading.
    fn what_is_missing(&self, name: &str, file: &mut File) -> io::Result<Option<String>>;
}

/// An open file of rows.
pub(crate) trait Rows {
    /// The next row.
    ///
    /// # Errors
    /// [`DataError::Read`].
    fn next(&mut self) -> Result<Option<RawRow>>;

    /// Reads what is left and returns the SHA-256 of the file's bytes, in hex.
    ///
    /// # Errors
    /// [`DataError::Read`].
    fn finish(self: Box<Self>) -> Result<String>;
}

/// A row as it was cut from its file.
pub(crate) struct RawRow {
    /// Where it is.
    pub place: Place,
    /// Parses it. Many rows are parsed at the same time.
    pub parse: Box<dyn FnOnce() -> ParsedRow + Send>,
}

/// A row by its keys, or why it has none.
pub(crate) type ParsedRow = Result<Map<String, Value>, RowError>;

/// Opens a file of rows.
///
/// # Errors
/// [`DataError::Read`], and [`DataError::File`] if no kind of file fits.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Rows>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let head = input::Input::open(path)?.head().map_err(DataError::reading(path))?;
    match SOURCES.iter().find(|source| source.recognises(&name, &head)) {
        Some(source) => source.open(path),
        None => Err(DataError::file(path, FileProblem::OtherKind(foreign(&head).unwrap_or("an unknown kind of file")))),
    }
}

/// What a file of a known kind without rows for us is, by its first bytes.
fn foreign(head: &[u8]) -> Option<&'static str> {
    const MAGIC: &[(&[u8], &str)] = &[
        (b"PAR1", "a Parquet file"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x28\xb5\x2f\xfd", "a zstd file"),
        (b"ARROW1", "an Arrow file"),
        (b"BZh", "a bzip2 file"),
    ];
    MAGIC.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, name)| *name)
}

/// The endings of names of datasets, in lower case and in order of precedence.
pub fn dataset_endings() -> impl Iterator<Item = &'static str> {
    SOURCES.iter().flat_map(|source| source.endings()).copied()
}

/// Why a dataset at rest looks cut off, in words, if it does: a copy that broke
/// off is not to be trained on. The file's name decides how it is read.
///
/// # Errors
/// Reading.
pub fn what_is_missing(name: &str, file: &mut File) -> io::Result<Option<String>> {
    if file.metadata()?.len() == 0 {
        return Ok(Some("it is empty".into()));
    }
    let name = name.to_lowercase();
    let by_name = |source: &&&dyn RowSource| source.endings().iter().any(|ending| name.ends_with(ending));
    match SOURCES.iter().find(by_name) {
        Some(source) => source.what_is_missing(&name, file),
        None => Ok(None),
    }
}
