//! Small helpers on files: positioned reads, bounded text files.

use crate::error::FormatError;
use std::fs::File;
use std::io;
use std::path::Path;

/// Configuration and tokenizer files are text of a few megabytes at most; a
/// larger one is no such file, and reading it could exhaust the memory.
const LARGEST_TEXT_BYTES: u64 = 512 << 20;

/// Fills `buffer` from `offset`, without moving a shared cursor, so that one
/// open file serves many threads.
#[cfg(unix)]
pub(crate) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

/// Fills `buffer` from `offset`.
#[cfg(windows)]
pub(crate) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    let mut done = 0;
    while done < buffer.len() {
        match file.seek_read(&mut buffer[done..], offset + done as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => done += read,
        }
    }
    Ok(())
}

pub(crate) fn open(path: &Path) -> Result<(File, u64), FormatError> {
    let file = File::open(path).map_err(|e| FormatError::io("open", path, e))?;
    let metadata = file.metadata().map_err(|e| FormatError::io("read", path, e))?;
    if metadata.is_dir() {
        return Err(FormatError::damaged(path, "it is a folder where a file is expected"));
    }
    Ok((file, metadata.len()))
}

pub(crate) fn read_text(path: &Path) -> Result<String, FormatError> {
    let bytes = read_bytes(path)?;
    String::from_utf8(bytes).map_err(|_| FormatError::damaged(path, "it is not UTF-8 text"))
}

pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>, FormatError> {
    let (_, length) = open(path)?;
    if length > LARGEST_TEXT_BYTES {
        return Err(FormatError::damaged(
            path,
            format!("{length} bytes are too many for a configuration or tokenizer file"),
        ));
    }
    std::fs::read(path).map_err(|e| FormatError::io("read", path, e))
}

pub(crate) fn read_json(path: &Path) -> Result<serde_json::Value, FormatError> {
    serde_json::from_str(&read_text(path)?)
        .map_err(|e| FormatError::damaged(path, format!("it is not valid JSON: {e}")))
}

/// Reads a JSON file that may be absent; present but broken is still an error.
pub(crate) fn read_json_if_there(path: &Path) -> Result<Option<serde_json::Value>, FormatError> {
    if path.is_file() { read_json(path).map(Some) } else { Ok(None) }
}
