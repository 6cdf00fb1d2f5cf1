//! A folder of files, atomically.

use super::disk::{Disk, RealDisk};
use super::manifest::{MANIFEST_NAME, Manifest, ManifestFile};
use super::{REPLACED_PREFIX, TEMPORARY_PREFIX, hex, parent_and_name, temporary_name};
use crate::error::FormatError;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Writes a folder aside and renames it into place when it is whole.
///
/// Dropped without [`finish`](DirectoryWriter::finish), it removes what it wrote.
pub struct DirectoryWriter {
    disk: Arc<dyn Disk + Send + Sync>,
    target: PathBuf,
    parent: PathBuf,
    /// `None` once renamed.
    aside: Option<PathBuf>,
    files: Vec<ManifestFile>,
}

impl DirectoryWriter {
    /// Begins a folder that will be `target`; its parent is made where missing.
    pub fn create(target: &Path) -> Result<DirectoryWriter, FormatError> {
        DirectoryWriter::create_on(Arc::new(RealDisk), target)
    }

    /// [`create`](DirectoryWriter::create) on a given [`Disk`].
    pub fn create_on(disk: Arc<dyn Disk + Send + Sync>, target: &Path) -> Result<DirectoryWriter, FormatError> {
        let (parent, name) = parent_and_name(target)?;
        std::fs::create_dir_all(parent).map_err(|e| FormatError::io("create", parent, e))?;
        let aside = parent.join(temporary_name(name));
        disk.create_dir(&aside).map_err(|e| FormatError::io("create", target, e))?;
        Ok(DirectoryWriter {
            disk,
            target: target.to_path_buf(),
            parent: parent.to_path_buf(),
            aside: Some(aside),
            files: Vec::new(),
        })
    }

    /// Where the files are until the end.
    pub fn path(&self) -> &Path {
        self.aside.as_deref().unwrap_or(&self.target)
    }

    /// Begins a file of this folder. [`close`](DirectoryFile::close) it, or it
    /// will not be part of the folder.
    pub fn file(&mut self, name: &str) -> Result<DirectoryFile<'_>, FormatError> {
        let plain = Path::new(name).file_name().is_some_and(|n| n == std::ffi::OsStr::new(name));
        if !plain || name == MANIFEST_NAME || self.files.iter().any(|f| f.name == name) {
            return Err(FormatError::unsupported(
                &self.target,
                format!("a file called {name:?} in a new folder"),
                "give each file a plain name of its own",
            ));
        }
        let path = self.path().join(name);
        let file = self.disk.create(&path).map_err(|e| FormatError::io("create", &path, e))?;
        let hashing = HashingFile { disk: Arc::clone(&self.disk), file, digest: Sha256::new(), bytes: 0 };
        Ok(DirectoryFile {
            out: BufWriter::with_capacity(1 << 18, hashing),
            path,
            name: name.to_string(),
            folder: self,
        })
    }

    /// Adds a file of these bytes.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> Result<(), FormatError> {
        let mut file = self.file(name)?;
        file.write_all(bytes).map_err(|e| FormatError::io("write", &file.path, e))?;
        file.close()
    }

    /// Writes the manifest, makes everything durable and renames the folder
    /// into place, if nothing may be.
    pub fn finish(self, about: Map<String, Value>) -> Result<Manifest, FormatError> {
        self.seal(Some(about), false).map(|(_, manifest)| manifest)
    }

    /// As [`finish`](DirectoryWriter::finish), in place of a folder that may
    /// be there. The old one is moved aside first and removed last; a crash
    /// between is mended by [`remove_leftovers`].
    pub fn finish_replacing(self, about: Map<String, Value>) -> Result<Manifest, FormatError> {
        self.seal(Some(about), true).map(|(_, manifest)| manifest)
    }

    /// As [`finish_replacing`](DirectoryWriter::finish_replacing), without a
    /// manifest in the folder: for folders that other programs read, such as a
    /// model for transformers. Returns what the manifest would have been.
    pub fn finish_bare(self) -> Result<Manifest, FormatError> {
        self.seal(None, true).map(|(_, manifest)| manifest)
    }

    fn seal(mut self, about: Option<Map<String, Value>>, replace: bool) -> Result<(PathBuf, Manifest), FormatError> {
        let written = about.is_some();
        let manifest = Manifest::new(about.unwrap_or_default(), std::mem::take(&mut self.files));
        let aside = self.path().to_path_buf();
        let target = self.target.clone();
        let failed = |e| FormatError::io("write", &target, e);
        if written {
            let path = aside.join(MANIFEST_NAME);
            let mut file = self.disk.create(&path).map_err(failed)?;
            let text = manifest.text();
            let mut rest = text.as_bytes();
            while !rest.is_empty() {
                match self.disk.write(&mut file, rest) {
                    Ok(0) => return Err(failed(io::ErrorKind::WriteZero.into())),
                    Ok(n) => rest = &rest[n..],
                    Err(e) => return Err(failed(e)),
                }
            }
            self.disk.sync_file(&file).map_err(failed)?;
        }
        self.disk.sync_dir(&aside).map_err(failed)?;

        let mut old = None;
        if std::fs::symlink_metadata(&target).is_ok() {
            if !replace {
                return Err(failed(io::ErrorKind::AlreadyExists.into()));
            }
            let (parent, name) = parent_and_name(&target)?;
            let moved = parent.join(format!("{REPLACED_PREFIX}{name}"));
            remove(&moved).map_err(failed)?;
            self.disk.rename(&target, &moved).map_err(failed)?;
            old = Some(moved);
        }
        if let Err(e) = self.disk.rename(&aside, &target) {
            if let Some(old) = &old {
                // Back to how it was; the error is the first one's either way.
                let _ = std::fs::rename(old, &target);
            }
            return Err(failed(e));
        }
        self.aside = None;
        self.disk.sync_dir(&self.parent).map_err(failed)?;
        if let Some(old) = old {
            remove(&old).map_err(|e| FormatError::io("remove", &old, e))?;
        }
        Ok((target.clone(), manifest))
    }
}

impl Drop for DirectoryWriter {
    fn drop(&mut self) {
        if let Some(aside) = &self.aside {
            // As with files: the next `remove_leftovers` tries again.
            let _ = std::fs::remove_dir_all(aside);
        }
    }
}

/// One file of a folder being written; hashes what passes through.
pub struct DirectoryFile<'a> {
    out: BufWriter<HashingFile>,
    path: PathBuf,
    name: String,
    folder: &'a mut DirectoryWriter,
}

impl DirectoryFile<'_> {
    /// Where the file is, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file durable and part of the folder.
    pub fn close(self) -> Result<(), FormatError> {
        let failed = |e| FormatError::io("write", &self.path, e);
        let written = self.out.into_inner().map_err(|e| failed(e.into_error()))?;
        self.folder.disk.sync_file(&written.file).map_err(failed)?;
        self.folder.files.push(ManifestFile {
            name: self.name,
            bytes: written.bytes,
            sha256: hex(&written.digest.finalize()),
        });
        Ok(())
    }
}

impl Write for DirectoryFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

struct HashingFile {
    disk: Arc<dyn Disk + Send + Sync>,
    file: File,
    digest: Sha256,
    bytes: u64,
}

impl Write for HashingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.disk.write(&mut self.file, bytes)?;
        self.digest.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Removes what writers that died left in a folder, and puts a folder back
/// that was moved aside and never replaced. Returns what was removed.
///
/// Call it if no writer is at work in that folder.
pub fn remove_leftovers(folder: &Path) -> Result<Vec<PathBuf>, FormatError> {
    let mut removed = Vec::new();
    let entries = std::fs::read_dir(folder).map_err(|e| FormatError::io("read", folder, e))?;
    for entry in entries {
        let entry = entry.map_err(|e| FormatError::io("read", folder, e))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let path = entry.path();
        if let Some(original) = name.strip_prefix(REPLACED_PREFIX) {
            let original = folder.join(original);
            if std::fs::symlink_metadata(&original).is_err() {
                std::fs::rename(&path, &original).map_err(|e| FormatError::io("restore", &original, e))?;
                continue;
            }
        } else if !name.starts_with(TEMPORARY_PREFIX) {
            continue;
        }
        remove(&path).map_err(|e| FormatError::io("remove", &path, e))?;
        removed.push(path);
    }
    removed.sort();
    Ok(removed)
}

/// Removes a file, a link or a folder; nothing there is fine.
fn remove(path: &Path) -> io::Result<()> {
    let metadata = match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if metadata.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}
