//! What a finished folder says of itself, and whether it is true.

use super::{sha256_bytes, sha256_file};
use crate::error::FormatError;
use crate::files;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Component, Path};

/// The manifest's file name.
pub const MANIFEST_NAME: &str = "MANIFEST.json";

/// The list of a folder's files with their hashes. Written last, so a folder
/// with a manifest that verifies is whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Of this format.
    pub version: u32,
    /// Whatever the writer wants to know again: step, versions, hashes of inputs.
    #[serde(default)]
    pub about: Map<String, Value>,
    /// The files, by name.
    pub files: Vec<ManifestFile>,
    /// SHA-256 of this manifest written with an empty seal.
    pub seal: String,
}

/// One file of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Relative to the folder, with forward slashes.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
}

impl Manifest {
    pub(super) fn new(about: Map<String, Value>, mut files: Vec<ManifestFile>) -> Manifest {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let mut manifest = Manifest { version: 1, about, files, seal: String::new() };
        manifest.seal = manifest.computed_seal();
        manifest
    }

    fn computed_seal(&self) -> String {
        let unsealed = Manifest { seal: String::new(), ..self.clone() };
        sha256_bytes(unsealed.text().as_bytes())
    }

    pub(super) fn text(&self) -> String {
        // A struct of strings, numbers and JSON values always serialises.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}

/// Checks that every file of a folder is there and is what its manifest says.
///
/// # Errors
/// No manifest (the folder was never finished), or the first file that
/// differs. Files that the manifest does not list are nobody's business.
pub fn verify_directory(folder: &Path) -> Result<Manifest, FormatError> {
    let path = folder.join(MANIFEST_NAME);
    if !path.is_file() {
        return Err(FormatError::missing(folder, MANIFEST_NAME, "this folder was not written to its end"));
    }
    let manifest: Manifest =
        serde_json::from_str(&files::read_text(&path)?).map_err(|e| FormatError::damaged(&path, e.to_string()))?;
    if manifest.version != 1 {
        return Err(FormatError::unsupported(
            &path,
            format!("a manifest of version {}", manifest.version),
            "it is from a newer finetuned",
        ));
    }
    if manifest.seal != manifest.computed_seal() {
        return Err(FormatError::damaged(&path, "it does not match its own seal"));
    }
    for file in &manifest.files {
        let plain = !file.name.is_empty()
            && Path::new(&file.name).components().all(|part| matches!(part, Component::Normal(_)));
        if !plain {
            return Err(FormatError::damaged(
                &path,
                format!("it lists {:?}, which is no file of this folder", file.name),
            ));
        }
        let path = folder.join(&file.name);
        let length = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(e) => return Err(FormatError::io("read", &path, e)),
        };
        if length != file.bytes {
            return Err(FormatError::damaged(
                &path,
                format!("it has {length} bytes, and the manifest says {}", file.bytes),
            ));
        }
        if sha256_file(&path)? != file.sha256 {
            return Err(FormatError::damaged(&path, "its SHA-256 is not the manifest's"));
        }
    }
    Ok(manifest)
}
