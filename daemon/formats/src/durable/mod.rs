//! Files that are whole or not there, also after a crash or a power cut.
//!
//! The protocol: write aside under a `.tmp-` name in the same folder, fsync,
//! rename, fsync the folder. A rename without the fsyncs may survive a crash
//! that its data does not. After a failed fsync nothing is retried: the kernel
//! may have dropped the pages and will report success the next time
//! ("fsyncgate"), so the copy aside is discarded and the old file stays.

mod directory;
mod disk;
mod file;
mod manifest;

pub use directory::{DirectoryFile, DirectoryWriter, remove_leftovers};
pub use disk::{Disk, RealDisk};
pub use file::{write_file, write_file_on, write_file_with};
pub use manifest::{MANIFEST_NAME, Manifest, ManifestFile, verify_directory};

use crate::error::FormatError;
use crate::files;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// What every unfinished file and folder begins with.
pub const TEMPORARY_PREFIX: &str = ".tmp-";
/// What a folder that is being replaced is called meanwhile.
pub(crate) const REPLACED_PREFIX: &str = ".old-";

/// SHA-256 of a file, streamed, as 64 hexadecimal digits.
pub fn sha256_file(path: &Path) -> Result<String, FormatError> {
    let (mut file, _) = files::open(path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex(&digest.finalize())),
            Ok(n) => digest.update(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(FormatError::io("read", path, e)),
        }
    }
}

/// SHA-256 of bytes, as 64 hexadecimal digits.
pub fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A name that no other writer of this machine uses at this moment.
fn temporary_name(name: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{TEMPORARY_PREFIX}{name}-{}-{count}", std::process::id())
}

/// Parent folder and name of a path that is about to be written.
fn parent_and_name(path: &Path) -> Result<(&Path, &str), FormatError> {
    let name = path.file_name().and_then(|name| name.to_str());
    match (path.parent(), name) {
        (Some(parent), Some(name)) if parent.as_os_str().is_empty() => Ok((Path::new("."), name)),
        (Some(parent), Some(name)) => Ok((parent, name)),
        _ => Err(FormatError::unsupported(
            path,
            "writing to a path without a name",
            "give a path that ends in a file's or folder's name",
        )),
    }
}
