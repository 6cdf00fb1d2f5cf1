//! One file, atomically.

use super::disk::{Disk, RealDisk};
use super::{parent_and_name, temporary_name};
use crate::error::FormatError;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Replaces (or makes) a file with these bytes: after a crash it holds all of
/// the old content or all of the new.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), FormatError> {
    write_file_on(&RealDisk, path, bytes)
}

/// [`write_file`] on a given [`Disk`].
pub fn write_file_on(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), FormatError> {
    write_with(disk, path, |out| out.write_all(bytes).map_err(|e| FormatError::io("write", path, e)))
}

/// Replaces (or makes) a file with what `fill` writes; nothing is kept where
/// `fill` fails.
pub fn write_file_with(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    write_with(&RealDisk, path, fill)
}

fn write_with(
    disk: &dyn Disk,
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    let (parent, name) = parent_and_name(path)?;
    let aside = Aside(Some(parent.join(temporary_name(name))));
    let temporary = aside.path();
    let file = disk.create(temporary).map_err(|e| FormatError::io("create", path, e))?;
    let mut out = BufWriter::with_capacity(1 << 18, DiskWriter { disk, file });
    fill(&mut out)?;
    let out = out.into_inner().map_err(|e| FormatError::io("write", path, e.into_error()))?;
    disk.sync_file(&out.file).map_err(|e| FormatError::io("write", path, e))?;
    drop(out);
    disk.rename(temporary, path).map_err(|e| FormatError::io("write", path, e))?;
    aside.keep();
    disk.sync_dir(parent).map_err(|e| FormatError::io("write", path, e))
}

/// A file aside, removed unless it was renamed into its place.
struct Aside(Option<PathBuf>);

impl Aside {
    fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Nothing can be done where even this fails; the next
            // `remove_leftovers` tries again.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Routes a file's writes through a [`Disk`].
pub(super) struct DiskWriter<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) file: File,
}

impl Write for DiskWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.write(&mut self.file, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
