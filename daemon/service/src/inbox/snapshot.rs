//! A copy of a dataset under the hash of its content, so that a run does not
//! depend on what happens to the source.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::filesystem::sha256_of;

/// A dataset at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The copy, or the source.
    pub path: PathBuf,
    /// Of its bytes, in hexadecimal.
    pub sha256: String,
    /// The source was too large: it is read in place.
    pub in_place: bool,
}

/// Copies `source` (opened from `source_path`) to `datasets/<sha256>/data.…`.
/// The hash is of the copy, so it is true whatever the source does meanwhile.
/// The copy shares blocks with the source on file systems that can.
///
/// # Errors
/// Reading, writing.
pub fn take(source: &mut File, source_path: &Path, datasets: &Path, limit: u64) -> Result<Snapshot> {
    let size = source.metadata()?.len();
    if size > limit {
        let sha256 = sha256_of(source).with_context(|| format!("cannot read {}", source_path.display()))?;
        return Ok(Snapshot { path: source_path.to_path_buf(), sha256, in_place: true });
    }
    std::fs::create_dir_all(datasets).with_context(|| format!("cannot make {}", datasets.display()))?;
    let mut copy = tempfile::Builder::new().prefix(".tmp-").tempfile_in(datasets)?;
    copy_all(source, copy.as_file_mut()).with_context(|| format!("cannot copy {}", source_path.display()))?;
    let sha256 = sha256_of(copy.as_file_mut())?;
    let folder = datasets.join(&sha256);
    let path = folder.join(file_name(source_path));
    if !path.exists() {
        std::fs::create_dir_all(&folder)?;
        copy.as_file().sync_all()?;
        copy.persist(&path).map_err(|error| error.error)?;
        File::open(&folder)?.sync_all()?;
        File::open(datasets)?.sync_all()?;
    }
    Ok(Snapshot { path, sha256, in_place: false })
}

/// `data.jsonl`: the content is named by its folder, the ending tells its kind.
fn file_name(source: &Path) -> String {
    let name = source.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let ending = finetuned_data::dataset_ending(&name).map_or(".jsonl", |(_, ending)| ending);
    format!("data{ending}")
}

fn copy_all(source: &mut File, copy: &mut File) -> io::Result<()> {
    use std::io::{Seek, SeekFrom};
    source.seek(SeekFrom::Start(0))?;
    #[cfg(target_os = "linux")]
    if rustix::fs::ioctl_ficlone(&*copy, &*source).is_ok() {
        return Ok(());
    }
    io::copy(source, copy).map(|_| ())
}

/// Whether a dataset that is read in place is still what was claimed.
///
/// # Errors
/// It cannot be read.
pub fn verify(path: &Path, sha256: &str) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let found = sha256_of(&mut file).with_context(|| format!("cannot read {}", path.display()))?;
    if found == sha256 {
        return Ok(());
    }
    let message = format!("{} was changed since it was claimed (sha256 {found}, expected {sha256})", path.display());
    Err(Error::conflict(message).remedy("put it back, or drop the new one as another dataset"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_content_is_one_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let datasets = dir.path().join("datasets");
        let take_of = |name: &str, limit| {
            let path = dir.path().join(name);
            std::fs::write(&path, "abc").unwrap();
            take(&mut File::open(&path).unwrap(), &path, &datasets, limit).unwrap()
        };
        let first = take_of("a.jsonl", 100);
        assert_eq!(first, take_of("b.jsonl", 100));
        assert_eq!(std::fs::read(&first.path).unwrap(), b"abc");
        assert_eq!(std::fs::read_dir(&datasets).unwrap().count(), 1);
        let large = take_of("c.jsonl", 2);
        assert!(large.in_place);
        assert_eq!((&large.sha256, large.path), (&first.sha256, dir.path().join("c.jsonl")));
        verify(&first.path, &first.sha256).unwrap();
        assert!(verify(&first.path, "00").is_err());
    }
}
