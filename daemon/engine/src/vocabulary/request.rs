//! What is asked of a run, how it is steered, and how it ends.

use std::path::PathBuf;

use super::event::{Event, Summary};
use crate::recipe::Recipe;

/// A library that plugins are loaded from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PluginLibrary {
    /// The file that is loaded: a copy that nobody else writes to.
    pub path: PathBuf,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// The file that was copied. Messages and records name this one.
    #[serde(default)]
    pub origin: PathBuf,
}

/// A training run: paths and the recipe, whose `base` is here the path of a Hugging
/// Face folder or of a GGUF file.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TrainRequest {
    /// The dataset.
    pub data: PathBuf,
    /// Validation rows; None: a fraction of the dataset.
    pub validation: Option<PathBuf>,
    /// A PEFT adapter to start from.
    pub adapter: Option<PathBuf>,
    /// Output, metrics.jsonl, run.json and checkpoints/ go here.
    pub out: PathBuf,
    /// Every choice of the run.
    pub recipe: Recipe,
    /// What `--device` takes: `auto`, `cpu`, `gpu`, `vulkan:0`, ….
    pub device: String,
    /// Remove what an earlier run left in `out`.
    pub fresh: bool,
    /// Threads of the CPU; None: all cores.
    pub threads: Option<usize>,
    /// Libraries whose plugins the recipe may name beside the built-in ones.
    #[serde(default)]
    pub plugins: Vec<PluginLibrary>,
    /// Resume the run in `out` although it was trained with another build of a plugin.
    #[serde(default)]
    pub accept_plugin_change: bool,
}

/// What the caller wants of a run. It is asked at the end of every step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Continue,
    /// Write a checkpoint and return [`Outcome::Stopped`] (pause, SIGTERM).
    Stop,
    /// Return [`Outcome::Cancelled`] without a checkpoint.
    Cancel,
}

/// Receives events and steers.
pub trait Observer {
    /// Hears what happens.
    fn event(&mut self, event: &Event);
    /// Called at the end of each step, and between micro-batches for `Cancel`.
    fn control(&mut self) -> Control {
        Control::Continue
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The last step is done and the output is written.
    Finished(Box<Summary>),
    /// `out` already holds the finished run of this very request.
    AlreadyFinished(Box<Summary>),
    /// A checkpoint of this step was written.
    Stopped { step: usize },
    /// The run ended after this step, without a checkpoint.
    Cancelled { step: usize },
}
