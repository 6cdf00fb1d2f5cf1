//! Whether a file at rest is a whole file: a copy that broke off ends in the
//! middle of a line.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use serde::de::IgnoredAny;

/// Most bytes of a last line that are looked at. A longer one is taken as whole and
/// left to the reading of the dataset.
const LONGEST_LAST_LINE: u64 = 64 << 20;

/// Why a file looks cut off, if it does. Its name, in lower case, decides how it
/// is read.
///
/// # Errors
/// Reading.
pub(super) fn what_is_missing(name: &str, file: &mut File) -> io::Result<Option<String>> {
    if name.ends_with(".json") {
        return whole_document(file);
    }
    let size = file.metadata()?.len();
    last_line(file, size)
}

fn whole_document(file: &mut File) -> io::Result<Option<String>> {
    file.seek(SeekFrom::Start(0))?;
    let mut rows = serde_json::Deserializer::from_reader(BufReader::new(file)).into_iter::<IgnoredAny>();
    // One list, or rows one after another as in JSON lines. What is wrong with a
    // whole document is told when the dataset is read.
    loop {
        match rows.next() {
            Some(Ok(IgnoredAny)) => {}
            Some(Err(error)) if error.is_eof() => {
                return Ok(Some(format!("it breaks off at line {}", error.line())));
            }
            Some(Err(error)) if error.is_io() => return Err(error.into()),
            Some(Err(_)) | None => return Ok(None),
        }
    }
}

fn last_line(file: &mut File, size: u64) -> io::Result<Option<String>> {
    let mut tail = Vec::new();
    let mut window = 4096;
    loop {
        window = size.min(window);
        file.seek(SeekFrom::Start(size - window))?;
        tail.clear();
        Read::take(&mut *file, window).read_to_end(&mut tail)?;
        let end = tail.iter().rposition(|b| !b.is_ascii_whitespace()).map_or(0, |last| last + 1);
        tail.truncate(end);
        if let Some(start) = tail.iter().rposition(|&b| b == b'\n') {
            tail.drain(..=start);
            break;
        }
        if window == size {
            break;
        }
        if window >= LONGEST_LAST_LINE {
            return Ok(None);
        }
        window *= 8;
    }
    if tail.is_empty() {
        return Ok(Some("it holds only blank lines".into()));
    }
    match serde_json::from_slice::<IgnoredAny>(&tail) {
        Err(error) if error.is_eof() => Ok(Some("its last line is cut off".into())),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::what_is_missing;

    fn missing(name: &str, content: &str) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), content).unwrap();
        what_is_missing(name, &mut File::open(dir.path().join(name)).unwrap()).unwrap()
    }

    #[test]
    fn cut_off_lines_are_found() {
        assert!(missing("a.jsonl", "{\"a\":1}\n{\"a\":").unwrap().contains("last line"));
        assert!(missing("a.jsonl", "").unwrap().contains("empty"));
        assert!(missing("a.jsonl", "\n \n").unwrap().contains("blank"));
        let long = format!("{{\"a\":1}}\n{{\"a\":\"{}", "x".repeat(200_000));
        assert!(missing("a.jsonl", &long).is_some());
        assert_eq!(missing("a.jsonl", &format!("{long}\"}}\n\n")), None);
    }

    #[test]
    fn a_whole_file_with_bad_rows_is_whole() {
        assert_eq!(missing("a.jsonl", "{\"a\":1}\n{\"a\":2}"), None);
        assert_eq!(missing("a.jsonl", "{\"a\":1}\nnot json\n"), None);
    }

    #[test]
    fn a_json_document_must_close() {
        assert!(missing("a.json", "[{\"a\":1},\n{\"a\":2}").unwrap().contains("line 2"));
        assert_eq!(missing("a.json", "[{\"a\":1}]\n"), None);
        assert_eq!(missing("a.json", "{\"a\":1}\n{\"a\":2}\n"), None);
        assert_eq!(missing("a.json", "[1, oops]"), None);
    }
}
