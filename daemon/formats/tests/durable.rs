//! Durable writing: every system call of the protocol fails once, and what is
//! on the disk is whole, old or new; and what a manifest finds out.

mod common;

use common::assert_error;
use finetuned_formats::FormatError;
use finetuned_formats::durable::{
    DirectoryWriter, Disk, MANIFEST_NAME, RealDisk, remove_leftovers, sha256_bytes, sha256_file, verify_directory,
    write_file, write_file_on, write_file_with,
};
use serde_json::{Map, json};
use std::cell::Cell;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A disk whose n-th call fails.
struct Failing {
    left: AtomicUsize,
    kind: ErrorKind,
    /// The call that failed, by its number in `CALLS`.
    failed: AtomicUsize,
}

const CALLS: [&str; 6] = ["create", "write", "sync_file", "create_dir", "sync_dir", "rename"];

impl Failing {
    fn at(n: usize, kind: ErrorKind) -> Arc<Failing> {
        Arc::new(Failing { left: AtomicUsize::new(n), kind, failed: AtomicUsize::new(usize::MAX) })
    }

    fn step(&self, call: usize) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 0 {
            self.failed.store(call, Ordering::Relaxed);
            return Err(self.kind.into());
        }
        Ok(())
    }

    fn failed(&self) -> Option<&'static str> {
        CALLS.get(self.failed.load(Ordering::Relaxed)).copied()
    }
}

impl Disk for Failing {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.step(0)?;
        RealDisk.create(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<usize> {
        self.step(1)?;
        // Short writes are allowed, so they have to be survived.
        RealDisk.write(file, &bytes[..bytes.len().div_ceil(2)])
    }

    fn sync_file(&self, file: &File) -> io::Result<()> {
        self.step(2)?;
        RealDisk.sync_file(file)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.step(3)?;
        RealDisk.create_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.step(4)?;
        RealDisk.sync_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(5)?;
        RealDisk.rename(from, to)
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_is_old_or_new_whichever_call_fails() {
    let mut seen = Vec::new();
    for n in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        write_file(&path, b"old").unwrap();
        let disk = Failing::at(n, ErrorKind::Other);
        let result = write_file_on(&*disk, &path, b"the new content");
        let content = std::fs::read(&path).unwrap();
        assert_eq!(names(folder.path()), ["state.json"], "call {n}");
        let Some(call) = disk.failed() else {
            result.unwrap();
            assert_eq!(content, b"the new content");
            break;
        };
        assert_error(result, &["state.json", "cannot"]);
        // After the rename the new content is in place, durable or not.
        let expected: &[u8] = if call == "sync_dir" { b"the new content" } else { b"old" };
        assert_eq!(content, expected, "{call}");
        seen.push(call);
    }
    for call in ["create", "write", "sync_file", "rename", "sync_dir"] {
        assert!(seen.contains(&call), "{call} was never tried: {seen:?}");
    }
}

#[test]
fn a_full_disk_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded] {
        for n in 0..3 {
            let error = write_file_on(&*Failing::at(n, kind), &path, b"bytes").unwrap_err();
            assert!(error.is_no_space(), "{error}");
            assert!(error.to_string().contains("no space left"), "{error}");
        }
    }
    let error = write_file_on(&*Failing::at(0, ErrorKind::Other), &path, b"").unwrap_err();
    assert!(!error.is_no_space());
}

/// The device that is always full says so through the real system calls.
#[cfg(target_os = "linux")]
#[test]
fn the_full_device_is_full() {
    let mut full = File::options().write(true).open("/dev/full").unwrap();
    let kind = full.write_all(b"x").unwrap_err().kind();
    assert_eq!(kind, ErrorKind::StorageFull);
}

#[test]
fn what_fill_says_is_what_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let reached = Cell::new(false);
    let result = write_file_with(&path, |out| {
        out.write_all(b"half").unwrap();
        reached.set(true);
        Err(FormatError::NoSpace { path: "elsewhere".into() })
    });
    assert!(reached.get() && result.unwrap_err().is_no_space());
    assert!(names(folder.path()).is_empty());
    assert_error(write_file(Path::new("/"), b""), &["without a name"]);
    assert_error(write_file(&folder.path().join("no/such/x"), b""), &["create"]);
}

fn write_checkpoint(
    disk: Arc<dyn Disk + Send + Sync>,
    target: &Path,
    content: &str,
    replace: bool,
) -> Result<(), FormatError> {
    let mut writer = DirectoryWriter::create_on(disk, target)?;
    writer.add("weights", content.as_bytes())?;
    let mut file = writer.file("moments")?;
    for _ in 0..3 {
        file.write_all(content.as_bytes()).map_err(|e| FormatError::Io {
            action: "write",
            path: file.path().to_path_buf(),
            source: e,
        })?;
    }
    file.close()?;
    let mut about = Map::new();
    about.insert("step".into(), json!(37));
    if replace {
        writer.finish_replacing(about)?;
    } else {
        writer.finish(about)?;
    }
    Ok(())
}

#[test]
fn a_folder_is_whole_or_absent_whichever_call_fails() {
    let mut seen = Vec::new();
    for n in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("step-37");
        let disk = Failing::at(n, ErrorKind::Other);
        let result = write_checkpoint(disk.clone(), &target, "new", false);
        let Some(call) = disk.failed() else {
            result.unwrap();
            break;
        };
        assert!(result.is_err(), "{call}");
        seen.push(call);
        if target.exists() {
            // Only the parent's fsync comes after the rename.
            assert_eq!(call, "sync_dir");
            verify_directory(&target).unwrap();
        }
        assert!(names(folder.path()).iter().all(|name| name == "step-37"));
    }
    for call in CALLS {
        assert!(seen.contains(&call), "{call} was never tried: {seen:?}");
    }
}

#[test]
fn a_folder_being_replaced_is_old_or_new_whichever_call_fails() {
    for n in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("adapter");
        write_checkpoint(Arc::new(RealDisk), &target, "old", true).unwrap();
        let disk = Failing::at(n, ErrorKind::Other);
        let result = write_checkpoint(disk.clone(), &target, "new", true);
        let content = std::fs::read_to_string(target.join("weights")).unwrap();
        verify_directory(&target).unwrap();
        if disk.failed().is_none() {
            result.unwrap();
            assert_eq!(content, "new");
            assert_eq!(names(folder.path()), ["adapter"]);
            break;
        }
        assert!(result.is_err());
        remove_leftovers(folder.path()).unwrap();
        assert_eq!(names(folder.path()), ["adapter"]);
    }
}

#[test]
fn a_manifest_finds_every_change() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("step-37");
    write_checkpoint(Arc::new(RealDisk), &target, "content", false).unwrap();
    let manifest = verify_directory(&target).unwrap();
    assert_eq!(manifest.about["step"], 37);
    let listed: Vec<(&str, u64)> = manifest.files.iter().map(|f| (f.name.as_str(), f.bytes)).collect();
    assert_eq!(listed, [("moments", 21), ("weights", 7)]);
    assert_eq!(manifest.files[1].sha256, sha256_bytes(b"content"));
    assert_eq!(sha256_file(&target.join("weights")).unwrap(), sha256_bytes(b"content"));
    // The well-known hash of nothing.
    assert!(sha256_bytes(b"").starts_with("e3b0c44298fc1c14"));

    // A file of somebody else's is nobody's business.
    std::fs::write(target.join("notes.txt"), "mine").unwrap();
    verify_directory(&target).unwrap();

    let weights = target.join("weights");
    std::fs::write(&weights, "c0ntent").unwrap();
    assert_error(verify_directory(&target), &["weights", "SHA-256"]);
    std::fs::write(&weights, "conten").unwrap();
    assert_error(verify_directory(&target), &["weights", "6 bytes", "7"]);
    std::fs::remove_file(&weights).unwrap();
    assert_error(verify_directory(&target), &["weights"]);
    std::fs::write(&weights, "content").unwrap();
    verify_directory(&target).unwrap();

    let path = target.join(MANIFEST_NAME);
    let text = std::fs::read_to_string(&path).unwrap();
    for (changed, says) in [
        (text.replace("37", "38"), "seal"),
        (text.replace("\"moments\"", "\"../moments\""), "seal"),
        (text[..text.len() / 2].to_string(), "damaged"),
        (String::new(), "damaged"),
        (text.replace("\"version\": 1", "\"version\": 2"), "version 2"),
    ] {
        std::fs::write(&path, changed).unwrap();
        assert_error(verify_directory(&target), &[MANIFEST_NAME, says]);
    }
    std::fs::remove_file(&path).unwrap();
    assert_error(verify_directory(&target), &["not written to its end"]);
}

/// A manifest with a right seal and a file name that leaves the folder.
#[test]
fn a_manifest_cannot_point_outside() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), "s").unwrap();
    let target = folder.path().join("step");
    std::fs::create_dir(&target).unwrap();
    for name in ["../secret", "/etc/hostname", "", "."] {
        let unsealed = json!({
            "version": 1,
            "about": {},
            "files": [{"name": name, "bytes": 1, "sha256": sha256_bytes(b"s")}],
            "seal": "",
        });
        let seal = sha256_bytes(format!("{unsealed:#}\n").as_bytes());
        let mut sealed = unsealed.clone();
        sealed["seal"] = json!(seal);
        std::fs::write(target.join(MANIFEST_NAME), format!("{sealed:#}\n")).unwrap();
        assert_error(verify_directory(&target), &["no file of this folder"]);
    }
}

#[test]
fn names_are_plain_and_used_once() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out");
    let mut writer = DirectoryWriter::create(&target).unwrap();
    writer.add("a", b"1").unwrap();
    for name in ["a", "../b", "b/c", "", "..", MANIFEST_NAME] {
        assert_error(writer.add(name, b""), &["plain name"]);
    }
    // A file that is not closed is not part of the folder.
    drop(writer.file("unfinished").unwrap());
    let manifest = writer.finish(Map::new()).unwrap();
    assert_eq!(manifest.files.len(), 1);
    // Nothing may be there already.
    let again = DirectoryWriter::create(&target).unwrap();
    assert!(again.finish(Map::new()).is_err());
    assert_eq!(std::fs::read(target.join("a")).unwrap(), b"1");
    assert_eq!(names(folder.path()), ["out"]);
}

#[test]
fn leftovers_are_removed_and_replaced_folders_put_back() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at(".tmp-state.json-1-0"), "half").unwrap();
    std::fs::create_dir(at(".tmp-step-3-1-0")).unwrap();
    std::fs::write(at(".tmp-step-3-1-0").join("weights"), "half").unwrap();
    // Killed between moving the old folder aside and moving the new one in.
    std::fs::create_dir(at(".old-adapter")).unwrap();
    std::fs::write(at(".old-adapter").join("x"), "old").unwrap();
    // Killed between moving the new one in and removing the old one.
    std::fs::create_dir(at(".old-model")).unwrap();
    std::fs::create_dir(at("model")).unwrap();
    std::fs::write(at("keep.json"), "{}").unwrap();
    std::fs::write(at(".hidden"), "mine").unwrap();

    let removed = remove_leftovers(folder.path()).unwrap();
    assert_eq!(removed.len(), 3);
    assert_eq!(names(folder.path()), [".hidden", "adapter", "keep.json", "model"]);
    assert_eq!(std::fs::read(at("adapter").join("x")).unwrap(), b"old");
    assert!(remove_leftovers(folder.path()).unwrap().is_empty());
    assert!(remove_leftovers(&at("nowhere")).is_err());
}

/// A writer that is dropped takes its folder with it.
#[test]
fn a_dropped_writer_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = DirectoryWriter::create(&folder.path().join("deep/out")).unwrap();
    writer.add("a", b"1").unwrap();
    assert!(writer.path().is_dir());
    drop(writer);
    assert!(names(&folder.path().join("deep")).is_empty());
}
