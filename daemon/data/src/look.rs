//! A look at a file's first rows, without a tokenizer: enough to refuse what can never
//! be trained on before anything waits for it.

use std::path::Path;

use crate::error::{DataError, Result};
use crate::example::DataKind;
use crate::format;
use crate::intake::most_frequent;
use crate::row_error::RowError;
use crate::rows::{self, ParsedRow};

/// Most rows that are looked at.
const ROWS: usize = 64;

/// Most bytes of them, but for a single row.
const BYTES: usize = 8 << 20;

/// What the first rows of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Name of their format, for people.
    pub format: &'static str,
    /// What their examples are.
    pub kind: DataKind,
}

/// Looks at a file's first rows. `columns`: see [`crate::DataOptions::columns`].
///
/// # Errors
/// [`DataError::Read`], and [`DataError::File`] if the file is no dataset or none of
/// its first rows can be used, whatever the model.
pub fn look(path: &Path, columns: &[String]) -> Result<Look> {
    let mut reader = rows::open(path)?;
    let (mut first, mut bytes): (Vec<(usize, ParsedRow)>, usize) = (Vec::new(), 0);
    while first.len() < ROWS && bytes < BYTES {
        let Some(row) = reader.next()? else { break };
        bytes += row.bytes;
        first.push((row.line, (row.parse)()));
    }
    let format = most_frequent(first.iter().filter_map(|(_, row)| row.as_ref().ok()));
    let mut bad: Option<(usize, RowError)> = None;
    for (line, row) in first {
        let read = row.and_then(|row| match format {
            None => Err(format::unknown(&row, None)),
            Some(format) => format.read(&row, columns).map(|_| format),
        });
        match read {
            Ok(format) => return Ok(Look { format: format.name, kind: format.kind }),
            Err(error) => {
                bad.get_or_insert((line, error));
            }
        }
    }
    let (problem, remedy) = match bad {
        None => ("the file has no rows".to_owned(), "Give it at least one row.".to_owned()),
        Some((line, error)) => (
            format!("none of the first rows can be used; line {line}: {error}"),
            if format.is_none() { format::help() } else { "Correct the rows.".to_owned() },
        ),
    };
    Err(DataError::File { path: path.to_owned(), problem, remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look_at(content: &str) -> Result<Look> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, content).unwrap();
        look(&path, &[])
    }

    #[test]
    fn the_first_good_row_says_what_a_file_is() {
        let pairs = "oops\n{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n";
        let found = look_at(pairs).unwrap();
        assert_eq!((found.format, found.kind), ("preference pairs", DataKind::Pairs));
    }

    #[test]
    fn what_no_model_could_use_is_refused_with_its_line() {
        for (content, expected) in [
            ("{\"text\": \"a\", \"label\": 1}\n", "none of the first rows can be used; line 1: `label` judges the row"),
            ("\n{\"promt\": 1}\n", "none of the first rows can be used; line 2: no known format has the keys `promt`"),
            ("{}\n", "none of the first rows can be used; line 1: the row is an empty object"),
            ("a,b\n1,2\n", "this is a CSV table"),
        ] {
            let DataError::File { problem, .. } = look_at(content).unwrap_err() else { panic!("{content}") };
            assert!(problem.starts_with(expected), "{problem}");
        }
    }
}
