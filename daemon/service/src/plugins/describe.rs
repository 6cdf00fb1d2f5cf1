//! Asks a child process what a library offers, with a deadline, and remembers
//! the answer by the file's hash.

use std::ffi::OsStr;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use finetuned_engine::PluginLibrary;
use finetuned_plugin_api::registry::Descriptor;
use serde::{Deserialize, Serialize};

use super::child::{ANSWER, Answer};
use crate::error::{Context, Error, Result};
use crate::filesystem::{replace_file, sha256_of};
use crate::process::{ending, own_program, wait_until};

/// The most of a child's output that is read; an answer is far shorter.
const LONGEST_OUTPUT: u64 = 4 << 20;

/// Starts the children that load libraries.
#[derive(Debug, Clone, PartialEq)]
pub struct Describer {
    /// How long loading and describing may take.
    pub timeout: Duration,
    /// Most memory of the child.
    pub memory_bytes: Option<u64>,
}

/// What is remembered of a build.
#[derive(Serialize, Deserialize)]
struct Remembered {
    /// The version that wrote it; another one asks again.
    by: String,
    offers: Vec<Descriptor>,
}

impl Describer {
    /// What a kept copy offers.
    ///
    /// # Errors
    /// In one line: it is not a plugin, of another ABI version, or it died or hung
    /// while it was loaded.
    pub fn describe_cached(&self, copy: &PluginLibrary) -> Result<Vec<Descriptor>> {
        let memory = copy.path.with_extension("json");
        let known = std::fs::read(&memory).ok().and_then(|text| serde_json::from_slice::<Remembered>(&text).ok());
        if let Some(known) = known.filter(|known| known.by == env!("CARGO_PKG_VERSION")) {
            return Ok(known.offers);
        }
        let offers = self.describe(&copy.path, &copy.sha256, &copy.origin)?;
        let remembered = Remembered { by: env!("CARGO_PKG_VERSION").into(), offers };
        // Not to be remembered only costs another child.
        if let Ok(text) = serde_json::to_vec(&remembered) {
            let _ = replace_file(&memory, &text);
        }
        Ok(remembered.offers)
    }

    /// The same without memory, of any file; `shown` is its name in messages.
    ///
    /// # Errors
    /// As [`Describer::describe_cached`].
    pub fn describe(&self, path: &Path, sha256: &str, shown: &Path) -> Result<Vec<Descriptor>> {
        let words = [OsStr::new("describe"), path.as_os_str(), OsStr::new(sha256)];
        let name = shown.display().to_string();
        let answer = self.ask(&words, self.timeout).map_err(|end| match end {
            End::Ended(how) => Error::plugin(format!("plugin {name} ended its process while it was loaded: {how}")),
            End::Late(limit) => Error::plugin(format!(
                "plugin {name} was not loaded within {} (plugins.load_timeout)",
                humantime::format_duration(limit)
            )),
            End::Other(error) => error,
        })?;
        match answer {
            Answer::Offers { offers } => Ok(offers),
            Answer::Refused { why } => {
                let why = why.replace(&path.display().to_string(), &name);
                Err(Error::plugin(format!("plugin {}", why.strip_prefix("plugin ").unwrap_or(&why))))
            }
            other => Err(Error::internal(format!("plugin {name}: an unexpected answer {other:?}"))),
        }
    }

    /// Runs one check of the conformance kit; `library` is none for a built-in
    /// plugin. `Ok(Err(why))`: it fails the check.
    ///
    /// # Errors
    /// The child could not be started.
    pub fn check(
        &self,
        library: Option<(&Path, &str)>,
        plugin: &Descriptor,
        check: &str,
        timeout: Duration,
    ) -> Result<std::result::Result<(), String>> {
        let mut words = vec![OsStr::new("check"), plugin.kind.name().as_ref(), plugin.name.as_ref(), OsStr::new(check)];
        if let Some((path, sha256)) = library {
            words.extend([path.as_os_str(), OsStr::new(sha256)]);
        }
        Ok(match self.ask(&words, timeout) {
            Ok(Answer::Passed) => Ok(()),
            Ok(Answer::Failed { why } | Answer::Refused { why }) => Err(why),
            Ok(Answer::Offers { .. }) => Err("an answer to another question".into()),
            Err(End::Ended(how)) => Err(format!("the plugin ended its process: {how}")),
            Err(End::Late(limit)) => Err(format!("it did not return within {}", humantime::format_duration(limit))),
            Err(End::Other(error)) => return Err(error),
        })
    }

    fn ask(&self, words: &[&OsStr], timeout: Duration) -> std::result::Result<Answer, End> {
        let mut output = tempfile::tempfile().context("no file for a child's output").map_err(End::Other)?;
        let stdout = output.try_clone().context("no file for a child's output").map_err(End::Other)?;
        let program = own_program().map_err(End::Other)?;
        let mut command = Command::new(&program);
        command.arg("plugin-child");
        if let Some(bytes) = self.memory_bytes {
            command.arg("--memory").arg(bytes.to_string());
        }
        // What a library prints must not reach a terminal or a log as ours.
        command.args(words).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::null());
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", program.display())).map_err(End::Other)?;
        let ended = wait_until(&mut child, Instant::now() + timeout, Duration::from_millis(3));
        let Some(status) = ended.context("a child").map_err(End::Other)? else { return Err(End::Late(timeout)) };
        let mut text = Vec::new();
        let read = output.seek(SeekFrom::Start(0)).and_then(|_| output.take(LONGEST_OUTPUT).read_to_end(&mut text));
        read.context("a child's output").map_err(End::Other)?;
        // A plugin may print as well; the answer's line is marked.
        let text = String::from_utf8_lossy(&text);
        let answer = text.lines().rev().find_map(|line| serde_json::from_str(line.strip_prefix(ANSWER)?).ok());
        answer.ok_or_else(|| End::Ended(ending(status)))
    }
}

/// Why a child gave no answer.
enum End {
    Ended(String),
    Late(Duration),
    Other(Error),
}

/// The SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// Reading it.
pub fn hash_of(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    sha256_of(&mut file).with_context(|| format!("cannot read {}", path.display()))
}
