//! What the standard library leaves out: network file systems, opening without
//! following links, the lock of a state folder, replacing a file durably.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Result};

/// The kind of network file system that `path` is on, if it is on one: SQLite's log
/// is not safe there, and file events do not arrive.
pub fn network_kind(path: &Path) -> Option<&'static str> {
    match file_system_magic(path)? {
        0x6969 => Some("NFS"),
        0x517B | 0xFF53_4D42 | 0xFE53_4D42 => Some("SMB"),
        _ => None,
    }
}

/// Whether changes under `path` must be polled for: the network kinds, and
/// FUSE and 9p, which may hide one.
pub fn needs_polling(path: &Path) -> bool {
    network_kind(path).is_some() || matches!(file_system_magic(path), Some(0x6573_5546 | 0x0102_1997))
}

#[cfg(target_os = "linux")]
fn file_system_magic(path: &Path) -> Option<u64> {
    rustix::fs::statfs(path).ok().map(|found| (found.f_type as u64) & 0xFFFF_FFFF)
}

#[cfg(not(target_os = "linux"))]
fn file_system_magic(_path: &Path) -> Option<u64> {
    None
}

/// Opens `relative` under `root` for reading: no link on the way is followed,
/// nothing leads out of `root`, and it must be a regular file (a FIFO would
/// block, a device do worse).
///
/// # Errors
/// As the kernel says, or `InvalidInput` for anything but a regular file.
pub fn open_beneath(root: &Path, relative: &Path) -> io::Result<File> {
    let file = open_without_links(root, relative)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

#[cfg(target_os = "linux")]
fn open_without_links(root: &Path, relative: &Path) -> io::Result<File> {
    use rustix::fs::ResolveFlags;
    use rustix::io::Errno;
    let folder = File::open(root)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(&folder, relative, READ, Mode::empty(), resolve) {
        Ok(fd) => Ok(File::from(fd)),
        // Older kernels, and sandboxes that do not know the call.
        Err(Errno::NOSYS | Errno::PERM | Errno::INVAL) => open_part_by_part(root, relative),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn open_without_links(root: &Path, relative: &Path) -> io::Result<File> {
    open_part_by_part(root, relative)
}

fn open_part_by_part(root: &Path, relative: &Path) -> io::Result<File> {
    let mut folder = File::open(root)?;
    let mut parts = relative.components().peekable();
    while let Some(part) = parts.next() {
        let std::path::Component::Normal(name) = part else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path leads out of its folder"));
        };
        let flags = if parts.peek().is_some() { READ | OFlags::DIRECTORY } else { READ };
        folder = File::from(rustix::fs::openat(&folder, name, flags, Mode::empty())?);
    }
    Ok(folder)
}

/// Replaces `path`: written aside under a hidden name, synced, renamed, and
/// the folder synced, so that a reader and a power cut see the old or the new.
///
/// # Errors
/// Any of these steps, with the path.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().ok_or_else(|| Error::internal(format!("{} has no folder", path.display())))?;
    let write = || -> io::Result<()> {
        let mut aside = tempfile::Builder::new().prefix(".tmp-").tempfile_in(folder)?;
        aside.write_all(bytes)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            aside.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
        }
        aside.as_file().sync_all()?;
        aside.persist(path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// SHA-256 of everything in `file`, from its start, in hex.
///
/// # Errors
/// Reading.
pub fn sha256_of(file: &mut File) -> io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

/// SHA-256 of some bytes, in hex.
pub fn sha256_of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A lock that lives as long as the process that holds it, with the holder's
/// process id in the file for those who find it taken.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Somebody else holds it.
#[derive(Debug, PartialEq, Eq)]
pub struct Held {
    /// The process id of the holder, if the file says it.
    pub by: Option<u32>,
}

impl Lock {
    /// Takes the lock, or tells who has it.
    ///
    /// # Errors
    /// The file cannot be opened or written.
    pub fn take(path: &Path) -> Result<std::result::Result<Lock, Held>> {
        let open = || File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = open().with_context(|| format!("cannot open the lock {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0)?;
                writeln!(file, "{}", std::process::id())?;
                Ok(Ok(Lock { _file: file }))
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                Ok(Err(Held { by: text.trim().parse().ok() }))
            }
            Err(std::fs::TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }
}

/// `~/x` for a path under the home folder: shorter to read.
pub fn display(path: &Path) -> String {
    match std::env::home_dir() {
        Some(home) if home != Path::new("/") => match path.strip_prefix(&home) {
            Ok(rest) => PathBuf::from("~").join(rest).display().to_string(),
            Err(_) => path.display().to_string(),
        },
        _ => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_special_files_are_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        std::fs::write(root.join("sub/data"), "d").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("link")).unwrap();
        std::os::unix::fs::symlink("sub", root.join("way")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), rustix::fs::FileType::Fifo, Mode::from(0o600), 0)
            .unwrap();
        for open in [open_beneath as fn(&Path, &Path) -> io::Result<File>, |root, path| {
            let file = open_part_by_part(root, path)?;
            file.metadata()?.is_file().then_some(file).ok_or(io::ErrorKind::InvalidInput.into())
        }] {
            assert!(open(&root, Path::new("sub/data")).is_ok());
            for bad in ["link", "way/data", "../secret", "fifo", "sub"] {
                assert!(open(&root, Path::new(bad)).is_err(), "{bad}");
            }
        }
    }

    #[test]
    fn a_lock_names_its_holder_and_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Lock::take(&path).unwrap().unwrap();
        assert_eq!(Lock::take(&path).unwrap().unwrap_err(), Held { by: Some(std::process::id()) });
        drop(held);
        assert!(Lock::take(&path).unwrap().is_ok());
    }

    #[test]
    fn replacing_leaves_nothing_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        replace_file(&path, b"one").unwrap();
        replace_file(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_hash_is_sha256() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "abc").unwrap();
        let mut file = File::open(dir.path().join("f")).unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_of(&mut file).unwrap(), expected);
        assert_eq!(sha256_of_bytes(b"abc"), expected);
    }
}
