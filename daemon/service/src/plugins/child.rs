//! The body of the hidden command `plugin-child`: the process that may load a
//! library, so that neither the daemon nor `finetune plugin` has to.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use finetuned_plugin_api::abi;
use finetuned_plugin_api::conformance;
use finetuned_plugin_api::registry::{Descriptor, Entry, Registry};
use serde::{Deserialize, Serialize};

/// Before the line with the answer, which is JSON.
pub const ANSWER: &str = "finetuned-plugin-answer ";

/// What a child says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// The file was loaded.
    Offers {
        /// Its plugins.
        offers: Vec<Descriptor>,
    },
    /// Of the whole file; begins with its path.
    Refused {
        /// For people.
        why: String,
    },
    /// The plugin passed the check.
    Passed,
    /// The plugin failed the check.
    Failed {
        /// For people.
        why: String,
    },
}

#[derive(Args)]
/// The flags of `plugin-child`.
pub struct ChildArgs {
    /// Most memory of this process, in bytes
    #[arg(long)]
    memory: Option<u64>,
    #[command(subcommand)]
    question: Question,
}

#[derive(Subcommand)]
enum Question {
    /// What does this file offer?
    Describe { path: PathBuf, sha256: String },
    /// Does this plugin pass this check of the conformance kit?
    Check { kind: String, name: String, check: String, path: Option<PathBuf>, sha256: Option<String> },
}

/// Answers on stdout. The plugin may end this process at any time.
pub fn main(args: &ChildArgs) -> ExitCode {
    if let Some(bytes) = args.memory
        && let Err(error) = crate::process::limit_memory(bytes)
    {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let answer = match &args.question {
        Question::Describe { path, sha256 } => describe(path, sha256),
        Question::Check { kind, name, check, path, sha256 } => {
            let library = path.as_deref().zip(sha256.as_deref());
            check_plugin(library, kind, name, check).unwrap_or_else(|why| Answer::Refused { why })
        }
    };
    match serde_json::to_string(&answer) {
        // On a new line: the plugin may have printed half a line.
        Ok(text) => println!("\n{ANSWER}{text}"),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn describe(path: &Path, sha256: &str) -> Answer {
    match abi::load(path, sha256) {
        Ok(entries) => Answer::Offers { offers: entries.into_iter().map(|entry| entry.descriptor).collect() },
        Err(error) => Answer::Refused { why: error.to_string() },
    }
}

fn check_plugin(library: Option<(&Path, &str)>, kind: &str, name: &str, check: &str) -> Result<Answer, String> {
    let entries: Vec<Entry> = match library {
        Some((path, sha256)) => abi::load(path, sha256).map_err(|error| error.to_string())?,
        None => Registry::new(finetuned_standard::BUILT_IN).map_err(|error| error.to_string())?.entries().to_vec(),
    };
    // A loss and an optimizer may have the same name.
    let fits = |entry: &&Entry| entry.descriptor.name == name && entry.descriptor.kind.name() == kind;
    let entry = entries.iter().find(fits).ok_or_else(|| format!("there is no {kind} named '{name}'"))?;
    Ok(match conformance::run(entry, check) {
        Ok(()) => Answer::Passed,
        Err(error) => Answer::Failed { why: error.to_string() },
    })
}
