//! The system calls of the protocol, behind a trait so that tests can fail each one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// What the protocol asks of the operating system.
///
/// [`RealDisk`] is what everything uses; tests put one in front of it that
/// fails the n-th call.
pub trait Disk {
    /// Creates a file that must not exist.
    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).open(path)
    }

    /// Appends bytes to a file being written.
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<usize> {
        file.write(bytes)
    }

    /// Makes a file's content durable.
    fn sync_file(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    /// Creates a folder that must not exist.
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir(path)
    }

    /// Makes a folder's entries durable. Windows has no such call, and keeps
    /// its metadata in a journal.
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        if cfg!(windows) {
            return Ok(());
        }
        File::open(path)?.sync_all()
    }

    /// Renames, over an existing file if there is one.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }
}

/// The operating system itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {}
