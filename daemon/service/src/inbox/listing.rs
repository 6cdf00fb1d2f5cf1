//! One look at an inbox: what is in it, two levels deep.

use std::collections::BTreeMap;
use std::fs::{DirEntry, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::names;
use super::settle::{Looks, Stamp};

/// The name of the file that declares a folder to be one dataset.
pub const DATASET_FILE: &str = "dataset.toml";
/// The name of a folder's standing recipe.
pub const RECIPE_FILE: &str = "recipe.toml";

/// A dataset, ready or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Relative to the inbox: `a.jsonl`, `team/a.jsonl`, or the folder `set`.
    pub path: PathBuf,
    /// A folder with a dataset.toml.
    pub is_folder: bool,
    pub looks: Looks,
    /// The folder's recipe.toml and the sidecar, those that are there, lowest
    /// layer first.
    pub recipes: Vec<PathBuf>,
    /// Relative to the inbox.
    pub receipt: PathBuf,
}

impl Candidate {
    /// `support` for `support.jsonl`.
    pub fn name(&self) -> String {
        let file = self.path.file_name().unwrap_or_default().to_string_lossy();
        if self.is_folder { file.into_owned() } else { names::stem(&file).to_string() }
    }
}

/// Something that is not a dataset and whose owner should know why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    pub path: PathBuf,
    pub text: String,
    /// Where the remark is also written, for folders.
    pub receipt: Option<PathBuf>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listing {
    pub candidates: Vec<Candidate>,
    pub remarks: Vec<Remark>,
}

/// Lists an inbox.
///
/// # Errors
/// The inbox itself cannot be read. An entry that cannot be read is a remark.
pub fn list(inbox: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    let root = Folder::read(inbox, Path::new(""), &mut listing.remarks)?;
    root.add_files(&mut listing);
    for name in root.folders.keys() {
        let relative = PathBuf::from(name);
        match Folder::read(inbox, &relative, &mut listing.remarks) {
            Ok(folder) => root.add_folder(&folder, name, &mut listing),
            Err(error) => {
                listing.remarks.push(Remark { path: relative, text: format!("cannot be read: {error}"), receipt: None })
            }
        }
    }
    Ok(listing)
}

/// The entries of one folder, by name.
struct Folder {
    relative: PathBuf,
    files: BTreeMap<String, Metadata>,
    folders: BTreeMap<String, Metadata>,
}

impl Folder {
    fn read(inbox: &Path, relative: &Path, remarks: &mut Vec<Remark>) -> io::Result<Folder> {
        let mut folder = Folder { relative: relative.to_path_buf(), files: BTreeMap::new(), folders: BTreeMap::new() };
        for entry in std::fs::read_dir(inbox.join(relative))? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                let path = relative.join(entry.file_name());
                remarks.push(Remark { path, text: "its name is not UTF-8: rename it".into(), receipt: None });
                continue;
            };
            if names::is_ignored(&name) {
                continue;
            }
            // The entry may be gone by now: then the next scan tells.
            let Ok(metadata) = DirEntry::metadata(&entry) else { continue };
            if metadata.is_symlink() {
                let text = "symbolic links are not followed: copy the file here".to_string();
                remarks.push(Remark { path: relative.join(&name), text, receipt: None });
            } else if metadata.is_dir() {
                folder.folders.insert(name, metadata);
            } else if metadata.is_file() {
                folder.files.insert(name, metadata);
            } else if finetuned_data::dataset_ending(&name).is_some() {
                let text = "not a regular file".to_string();
                remarks.push(Remark { path: relative.join(&name), text, receipt: None });
            }
        }
        Ok(folder)
    }

    /// Datasets of this folder with what decides their receipts' names.
    fn datasets(&self) -> Vec<(String, bool)> {
        let files = self
            .files
            .keys()
            .filter(|name| finetuned_data::dataset_ending(name).is_some())
            .map(|name| (name.clone(), false));
        let folders = self.folders.keys().map(|name| (name.clone(), true));
        // Only the inbox itself has datasets that are folders.
        if self.relative.as_os_str().is_empty() { files.chain(folders).collect() } else { files.collect() }
    }

    fn add_files(&self, listing: &mut Listing) {
        let siblings = self.datasets();
        for (name, metadata) in &self.files {
            if finetuned_data::dataset_ending(name).is_none() {
                continue;
            }
            let present = [RECIPE_FILE.to_string(), names::sidecar(name)];
            let present: Vec<&String> = present.iter().filter(|name| self.files.contains_key(*name)).collect();
            let companions = present.iter().map(|name| stamp(name, &self.files[*name])).collect::<Vec<_>>().join(" ");
            listing.candidates.push(Candidate {
                path: self.relative.join(name),
                is_folder: false,
                looks: Looks { data: stamp(name, metadata), companions },
                recipes: present.iter().map(|name| self.relative.join(name)).collect(),
                receipt: self.relative.join(names::receipt(name, false, &siblings)),
            });
        }
    }

    /// Adds what `folder`, a folder of this inbox, holds.
    fn add_folder(&self, folder: &Folder, name: &str, listing: &mut Listing) {
        for deeper in folder.folders.keys() {
            let path = folder.relative.join(deeper);
            let text = "too deep: datasets belong into the inbox or into a folder of it".to_string();
            listing.remarks.push(Remark { path, text, receipt: None });
        }
        let receipt = names::receipt(name, true, &self.datasets());
        let datasets = folder.datasets();
        if folder.files.contains_key(DATASET_FILE) {
            let stamps: Vec<Stamp> = folder
                .files
                .iter()
                .filter(|(name, _)| *name != RECIPE_FILE)
                .map(|(name, found)| stamp(name, found))
                .collect();
            let recipe = folder.files.get(RECIPE_FILE);
            let companions = recipe.map(|found| stamp(RECIPE_FILE, found)).unwrap_or_default();
            listing.candidates.push(Candidate {
                path: folder.relative.clone(),
                is_folder: true,
                looks: Looks { data: stamps.join(" "), companions },
                recipes: recipe.iter().map(|_| folder.relative.join(RECIPE_FILE)).collect(),
                receipt,
            });
        } else if folder.files.contains_key(RECIPE_FILE) {
            folder.add_files(listing);
        } else if !datasets.is_empty() {
            let text = format!(
                "is not started: put a {RECIPE_FILE} into it to train each of its {} files on its own, or a {DATASET_FILE} (written last) to train it as one dataset; either may be empty",
                datasets.len()
            );
            listing.remarks.push(Remark { path: folder.relative.clone(), text, receipt: Some(receipt) });
        }
    }
}

/// Name, place, size and time: what changes when a file does.
fn stamp(name: &str, metadata: &Metadata) -> Stamp {
    format!(
        "{name}:{}:{}:{}:{}.{:09}",
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        dir
    }

    fn paths(listing: &Listing) -> Vec<&str> {
        listing.candidates.iter().map(|c| c.path.to_str().unwrap()).collect()
    }

    #[test]
    fn files_and_folders_two_levels_deep() {
        let dir = inbox(&[
            "a.jsonl",
            "a.toml",
            "notes.txt",
            "b.jsonl.part",
            "recipe.toml",
            "standing/recipe.toml",
            "standing/c.jsonl",
            "standing/c.toml",
            "standing/deep/d.jsonl",
            "set/dataset.toml",
            "set/train.jsonl",
            "set/recipe.toml",
            "loose/e.jsonl",
            "_receipts/x.jsonl",
            "empty/readme.md",
        ]);
        let listing = list(dir.path()).unwrap();
        assert_eq!(paths(&listing), ["a.jsonl", "set", "standing/c.jsonl"]);
        assert_eq!(listing.candidates[0].recipes, ["recipe.toml", "a.toml"].map(PathBuf::from));
        assert_eq!(listing.candidates[2].recipes, ["standing/recipe.toml", "standing/c.toml"].map(PathBuf::from));
        assert_eq!(listing.candidates[2].receipt, PathBuf::from("standing/_receipts/c.txt"));
        assert_eq!(listing.candidates[1].receipt, PathBuf::from("_receipts/set.txt"));
        let remarks: Vec<_> = listing.remarks.iter().map(|r| r.path.to_str().unwrap()).collect();
        assert_eq!(remarks, ["loose", "standing/deep"]);
        assert!(listing.remarks[0].text.contains("is not started"));
    }

    #[test]
    fn links_are_told_not_followed() {
        let dir = inbox(&["outside.jsonl"]);
        let inbox = dir.path().join("in");
        std::fs::create_dir(&inbox).unwrap();
        std::os::unix::fs::symlink("../outside.jsonl", inbox.join("a.jsonl")).unwrap();
        let listing = list(&inbox).unwrap();
        assert!(listing.candidates.is_empty());
        assert!(listing.remarks[0].text.contains("links"));
    }

    #[test]
    fn the_stamp_follows_the_data_and_the_companions_their_own() {
        let dir = inbox(&["a.jsonl", "a.toml"]);
        let before = list(dir.path()).unwrap().candidates.remove(0);
        std::fs::write(dir.path().join("a.toml"), "longer").unwrap();
        let sidecar = list(dir.path()).unwrap().candidates.remove(0);
        assert_eq!(before.looks.data, sidecar.looks.data);
        assert_ne!(before.looks.companions, sidecar.looks.companions);
        std::fs::write(dir.path().join("a.jsonl"), "longer").unwrap();
        assert_ne!(before.looks.data, list(dir.path()).unwrap().candidates[0].looks.data);
    }

    #[test]
    fn a_missing_inbox_is_an_error_not_an_empty_one() {
        assert!(list(Path::new("/nonexistent/inbox")).is_err());
    }
}
