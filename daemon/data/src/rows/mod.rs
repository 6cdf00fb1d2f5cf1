//! Rows of a file, one at a time, whatever kind of file it is.
//!
//! A kind of file is a [`RowSource`] and an entry of [`SOURCES`]. The endings of
//! its names, how its content is recognised, its rows, and how a file that is cut
//! off shows, are in one place. The inbox asks for them here.

mod foreign;
mod input;
mod json;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::error::{DataError, Result};
use crate::row_error::RowResult;
use foreign::foreign;
pub use foreign::{Foreign, what_is};
use input::{Input, PACKINGS};

/// The kinds of files, in order of precedence: the first that recognises a file
/// reads it. JSON is last, because it takes what no other kind does and says what
/// is wrong with it.
const SOURCES: &[&dyn RowSource] = &[&json::Json];

/// A kind of file that rows are read from.
pub(crate) trait RowSource: Sync {
    /// What it is called, in a message.
    fn name(&self) -> &'static str;

    /// The endings of its files' names before they are packed, in lower case and in
    /// order of precedence.
    fn endings(&self) -> &'static [&'static str];

    /// Whether a file of this name (in lower case), whose unpacked content begins
    /// with `head`, is of this kind.
    fn recognises(&self, name: &str, head: &[u8]) -> bool;

    /// Opens a file that it recognises.
    ///
    /// # Errors
    /// [`DataError::Read`], and [`DataError::File`] if it cannot be used.
    fn open(&self, path: &Path) -> Result<Box<dyn Rows>>;

    /// Why a file at rest that is not packed looks cut off, in words, if it does;
    /// see [`what_is_missing`].
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
    /// The line that it begins on, from 1; in a file without lines the row's number.
    pub line: usize,
    /// Its bytes in the file.
    pub bytes: usize,
    /// Parses it. Apart from the reading, because many rows are parsed at the same
    /// time.
    pub parse: Box<dyn FnOnce() -> ParsedRow + Send>,
}

/// A row by its keys, or why it has none.
pub(crate) type ParsedRow = RowResult<Map<String, Value>>;

/// Opens a file of rows.
///
/// # Errors
/// [`DataError::Read`], and [`DataError::File`] for a file of no known kind.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Rows>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let mut input = Input::open(path)?;
    let head = input.head().map_err(DataError::reading(path))?;
    match SOURCES.iter().find(|source| source.recognises(&name, head)) {
        Some(source) => source.open(path),
        None => Err(no_dataset(path, head)),
    }
}

/// The refusal of a file that no kind recognises.
fn no_dataset(path: &Path, head: &[u8]) -> DataError {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (problem, remedy) = match foreign(&name, head) {
        Some(foreign) => (format!("this is {}", foreign.is), foreign.remedy),
        None => {
            ("this is an unknown kind of file".to_owned(), format!("Datasets are {}: convert it first.", readable()))
        }
    };
    DataError::File { path: path.to_owned(), problem, remedy }
}

/// What can be read, in words.
fn readable() -> String {
    let kinds: Vec<&str> = SOURCES.iter().map(|source| source.name()).collect();
    let packings: Vec<&str> = PACKINGS.iter().map(|packing| packing.name).collect();
    format!("{}, plain or {}", kinds.join(", "), packings.join(", "))
}

static ENDINGS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let packed = PACKINGS.iter().map(|packing| packing.ending);
    let endings = || SOURCES.iter().flat_map(|source| source.endings());
    [""].into_iter().chain(packed).flat_map(|packed| endings().map(move |ending| format!("{ending}{packed}"))).collect()
});

/// The ending of a dataset's name, in lower case, and its rank among the endings,
/// which decides if two datasets share a stem. `None` for a name that is not a
/// dataset's, and for an ending without a stem.
pub fn dataset_ending(name: &str) -> Option<(usize, &'static str)> {
    let name = name.to_lowercase();
    let fits = |(_, ending): &(usize, &str)| name.len() > ending.len() && name.ends_with(ending);
    ENDINGS.iter().map(String::as_str).enumerate().find(fits)
}

/// Why a dataset at rest looks cut off, in words, if it does: a copy that broke off
/// is not to be trained on. The file's name decides how it is read, and one without
/// a known ending is read like JSON. The end of a packed file shows only when it is
/// read.
///
/// # Errors
/// Reading.
pub fn what_is_missing(name: &str, file: &mut File) -> io::Result<Option<String>> {
    if file.metadata()?.len() == 0 {
        return Ok(Some("it is empty".into()));
    }
    let name = name.to_lowercase();
    if PACKINGS.iter().any(|packing| name.ends_with(packing.ending)) {
        return Ok(None);
    }
    let by_name = |source: &&&dyn RowSource| source.endings().iter().any(|ending| name.ends_with(ending));
    match SOURCES.iter().find(by_name).or(SOURCES.last()) {
        Some(source) => source.what_is_missing(&name, file),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_file_may_be_packed_in_every_way() {
        for (rank, ending) in [".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz", ".ndjson.gz"].iter().enumerate() {
            assert_eq!(dataset_ending(&format!("A{}", ending.to_uppercase())), Some((rank, *ending)));
            assert_eq!(dataset_ending(ending), None);
        }
        assert_eq!(dataset_ending("a.gz"), None);
        assert_eq!(dataset_ending("a.toml"), None);
    }

    #[test]
    fn a_name_without_a_known_ending_is_looked_at_like_json_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"a\":1}\n{\"a\":").unwrap();
        let missing = |name: &str| what_is_missing(name, &mut File::open(file.path()).unwrap()).unwrap();
        assert!(missing("validation").unwrap().contains("last line"));
        assert_eq!(missing("a.jsonl.gz"), None);
    }
}
