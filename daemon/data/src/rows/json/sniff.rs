//! How the rows lie in a file, decided from its first bytes rather than its
//! name: many `.json` files are JSON lines.

use std::io::BufRead;
use std::path::Path;

use super::LARGEST_ROW_BYTES;
use super::scan::Scanner;
use crate::error::{DataError, Result};
use crate::format::{Format, list_keys};
use crate::rows::input::Input;

/// Where a file's rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// One object per line.
    Lines,
    /// One list of objects.
    Array,
    /// One object that holds a list of objects.
    Inside,
    /// One object that is itself the only row.
    Whole,
}

/// Where the rows of a file are.
///
/// # Errors
/// [`DataError::Read`], and [`DataError::File`] for a file that is empty, in
/// another encoding, or not JSON.
pub(super) fn sniff(path: &Path) -> Result<Layout> {
    let read = DataError::reading(path);
    let refuse = |problem: &str, remedy: &str| DataError::File {
        path: path.to_owned(),
        problem: problem.into(),
        remedy: remedy.into(),
    };
    let mut input = Input::open(path)?;
    let head = input.fill_buf().map_err(read)?;
    if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
        return Err(refuse("the file is in UTF-16", "Save it as UTF-8."));
    }
    let mut scanner = Scanner::new(input);
    scanner.skip_byte_order_mark().map_err(read)?;
    let opening = scanner.peek_past_blanks().map_err(read)?;
    if opening == Some(b'[') {
        return Ok(Layout::Array);
    }
    let first = match scanner.line(LARGEST_ROW_BYTES).map_err(read)? {
        None => return Err(refuse("the file is empty", "Give it at least one row.")),
        // One endless line: an object with a list inside, or nothing usable.
        Some((_, None, _)) => return inside_or_whole(path),
        Some((_, Some(line), _)) => line,
    };
    if opening == Some(b'{') {
        return match serde_json::from_slice::<serde_json::Value>(&first) {
            Ok(serde_json::Value::Object(map)) => {
                let alone = only_blank(&mut scanner.into_input()).map_err(read)?;
                if alone && Format::of(&map).is_none() { inside_or_whole(path) } else { Ok(Layout::Lines) }
            }
            Err(error) if error.is_eof() && is_spread(&mut scanner).map_err(read)? => inside_or_whole(path),
            _ => Ok(Layout::Lines),
        };
    }
    if looks_like_json(&first) {
        return Ok(Layout::Lines);
    }
    let start: String = String::from_utf8_lossy(&first).trim().chars().take(20).collect();
    Err(refuse(
        &format!("this is no JSON: it begins with `{start}`"),
        "Datasets are JSON lines or JSON; plain text goes in rows like {\"text\": \"…\"}.",
    ))
}

/// A first line that is damaged JSON rather than no JSON at all.
fn looks_like_json(line: &[u8]) -> bool {
    line.contains(&b'{') || line.contains(&b'"')
}

/// Whether the object that the first line opens goes on over the next lines,
/// rather than being cut off: the next line opens none of its own.
fn is_spread(scanner: &mut Scanner) -> std::io::Result<bool> {
    while let Some((_, Some(line), _)) = scanner.line(LARGEST_ROW_BYTES)? {
        if let Some(first) = line.trim_ascii_start().first() {
            return Ok(*first != b'{');
        }
    }
    Ok(false)
}

fn inside_or_whole(path: &Path) -> Result<Layout> {
    let read = DataError::reading(path);
    let mut scanner = Scanner::new(Input::open(path)?);
    scanner.skip_byte_order_mark().map_err(read)?;
    let lists = list_keys();
    match scanner.enter_first_list(&lists).map_err(read)? {
        Some(key) if !lists.contains(&key.as_str()) => Ok(Layout::Inside),
        _ => Ok(Layout::Whole),
    }
}

/// Whether anything but white space is left.
fn only_blank(input: &mut impl BufRead) -> std::io::Result<bool> {
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
