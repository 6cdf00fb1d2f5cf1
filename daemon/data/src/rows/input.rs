//! A file's bytes: unpacked if it is gzip (by its first bytes, not its name),
//! and hashed as they are on the disk.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};

use crate::error::{DataError, Result};

const BUFFER_BYTES: usize = 256 << 10;
/// Enough of a file to recognise it by.
const HEAD_BYTES: usize = 4096;

struct Hashing {
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

enum Kind {
    Plain(BufReader<Hashing>),
    Gzip(Box<BufReader<MultiGzDecoder<BufReader<Hashing>>>>),
}

/// The unpacked bytes of a file.
pub(super) struct Input(Kind);

impl Input {
    pub fn open(path: &Path) -> Result<Self> {
        let read = DataError::reading(path);
        let file = File::open(path).map_err(read)?;
        let hashing = Hashing { file, hash: Sha256::new() };
        let mut plain = BufReader::with_capacity(BUFFER_BYTES, hashing);
        let gzip = plain.fill_buf().map_err(read)?.starts_with(&[0x1f, 0x8b]);
        Ok(Self(if gzip {
            let unpacked = MultiGzDecoder::new(plain);
            Kind::Gzip(Box::new(BufReader::with_capacity(BUFFER_BYTES, unpacked)))
        } else {
            Kind::Plain(plain)
        }))
    }

    /// The first bytes of the content, without taking them.
    pub fn head(&mut self) -> io::Result<Vec<u8>> {
        let chunk = self.fill_buf()?;
        Ok(chunk[..chunk.len().min(HEAD_BYTES)].to_vec())
    }

    /// Reads the file to its end; SHA-256 of its bytes in hex.
    pub fn finish(self) -> io::Result<String> {
        let mut hashing = match self.0 {
            Kind::Plain(plain) => plain.into_inner(),
            Kind::Gzip(unpacked) => unpacked.into_inner().into_inner().into_inner(),
        };
        io::copy(&mut hashing, &mut io::sink())?;
        Ok(hashing.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Kind::Plain(plain) => plain.read(buffer),
            Kind::Gzip(unpacked) => unpacked.read(buffer),
        }
    }
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match &mut self.0 {
            Kind::Plain(plain) => plain.fill_buf(),
            Kind::Gzip(unpacked) => unpacked.fill_buf(),
        }
    }

    fn consume(&mut self, count: usize) {
        match &mut self.0 {
            Kind::Plain(plain) => plain.consume(count),
            Kind::Gzip(unpacked) => unpacked.consume(count),
        }
    }
}
