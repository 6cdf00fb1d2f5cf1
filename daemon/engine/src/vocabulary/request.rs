//! What is asked of a run, how it is steered, and how it ends.

use std::path::PathBuf;

use super::event::{Event, Summary};
use crate::recipe::Recipe;

/// A library that plugins are loaded from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PluginLibrary {
    /// What is loaded: a copy that nobody else writes to.
    pub path: PathBuf,
    /// Of its bytes, in hexadecimal.
    pub sha256: String,
    /// The file that the copy was made of: what messages and records name.
    #[serde(default)]
    pub origin: PathBuf,
}

/// A training run: paths and the recipe, whose `base` is here the path of a Hugging
/// Face folder or of a GGUF file.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TrainRequest {
    pub data: PathBuf,
    pub validation: Option<PathBuf>,
    /// A PEFT adapter to start from.
    pub adapter: Option<PathBuf>,
    /// Output, metrics.jsonl, run.json and checkpoints/ go here.
    pub out: PathBuf,
    pub recipe: Recipe,
    /// What `--device` takes: `auto`, `cpu`, `gpu`, `vulkan:0`, ….
    pub device: String,
    /// Throw away what an earlier run left in `out`.
    pub fresh: bool,
    /// Threads; None: all cores.
    pub threads: Option<usize>,
    /// Libraries whose plugins the recipe may name beside the built-in ones.
    #[serde(default)]
    pub plugins: Vec<PluginLibrary>,
    /// Go on with what `out` holds although a plugin is another build than the
    /// one that it was trained with.
    #[serde(default)]
    pub accept_plugin_change: bool,
}

/// What the caller wants of a running job; asked at every step's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    Continue,
    /// Write a checkpoint and return [`Outcome::Stopped`] (pause, SIGTERM).
    Stop,
    /// Return [`Outcome::Cancelled`] without a checkpoint.
    Cancel,
}

/// Receives events and steers.
pub trait Observer {
    fn event(&mut self, event: &Event);
    /// Called at the end of each step, and between micro-batches for `Cancel`.
    fn control(&mut self) -> Control {
        Control::Continue
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Finished(Box<Summary>),
    /// `out` already holds the finished run of this very request.
    AlreadyFinished(Box<Summary>),
    Stopped {
        step: usize,
    },
    Cancelled {
        step: usize,
    },
}
