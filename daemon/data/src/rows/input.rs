//! A file's bytes: unpacked if they are packed, and hashed as they are on the
//! disk.
//!
//! A way to pack a file is a line of [`PACKINGS`]. It is below every kind of file,
//! so each kind can be packed in each way.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};

use crate::error::{DataError, Result};

const BUFFER_BYTES: usize = 256 << 10;
/// Enough of a file to recognise it by.
pub(super) const HEAD_BYTES: usize = 4096;

/// A way to pack a file.
pub(super) struct Packing {
    /// What it is called, in a message.
    pub name: &'static str,
    /// What the name of a packed file ends with, after the ending of its content.
    pub ending: &'static str,
    /// The first bytes of a packed file. They decide, not the name.
    magic: &'static [u8],
    unpack: fn(Plain) -> Box<dyn Stream>,
    /// Unpacks a file's first bytes.
    unpack_head: for<'a> fn(&'a [u8]) -> Box<dyn Read + 'a>,
}

/// Every way to pack a file.
pub(super) const PACKINGS: &[Packing] = &[Packing {
    name: "gzip",
    ending: ".gz",
    magic: &[0x1f, 0x8b],
    unpack: |plain| Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(plain))),
    unpack_head: |head| Box::new(MultiGzDecoder::new(head)),
}];

/// The beginning of a file's content, from the file's first bytes: unpacked if they
/// are packed.
pub(super) fn unpacked_head(head: &[u8]) -> Vec<u8> {
    let Some(packing) = PACKINGS.iter().find(|packing| head.starts_with(packing.magic)) else {
        return head.to_vec();
    };
    let mut content = Vec::new();
    // The bytes end in the middle of the packed file, so an error is no surprise.
    let _ = (packing.unpack_head)(head).take(HEAD_BYTES as u64).read_to_end(&mut content);
    content
}

/// A file that is hashed as it is read.
pub(super) struct Hashing {
    file: File,
    hash: Sha256,
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

/// The bytes as they are on the disk.
type Plain = BufReader<Hashing>;

/// The content of a file.
trait Stream: BufRead {
    /// The file below, for what is left of it.
    fn into_file(self: Box<Self>) -> Hashing;
}

impl Stream for Plain {
    fn into_file(self: Box<Self>) -> Hashing {
        self.into_inner()
    }
}

impl Stream for BufReader<MultiGzDecoder<Plain>> {
    fn into_file(self: Box<Self>) -> Hashing {
        self.into_inner().into_inner().into_inner()
    }
}

/// The unpacked bytes of a file.
pub(super) struct Input(Box<dyn Stream>);

impl Input {
    /// # Errors
    /// [`DataError::Read`].
    pub fn open(path: &Path) -> Result<Self> {
        let read = DataError::reading(path);
        let file = File::open(path).map_err(read)?;
        let mut plain = BufReader::with_capacity(BUFFER_BYTES, Hashing { file, hash: Sha256::new() });
        let head = plain.fill_buf().map_err(read)?;
        let packing = PACKINGS.iter().find(|packing| head.starts_with(packing.magic));
        Ok(Self(match packing {
            Some(packing) => (packing.unpack)(plain),
            None => Box::new(plain),
        }))
    }

    /// The first bytes of the content, without taking them.
    pub fn head(&mut self) -> io::Result<&[u8]> {
        let chunk = self.fill_buf()?;
        Ok(&chunk[..chunk.len().min(HEAD_BYTES)])
    }

    /// Reads the file to its end; SHA-256 of its bytes in hex.
    pub fn finish(self) -> io::Result<String> {
        let mut file = self.0.into_file();
        io::copy(&mut file, &mut io::sink())?;
        Ok(file.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.0.consume(count);
    }
}
