//! The engine's errors: what failed, where, and what to do.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Recipe(#[from] crate::recipe::RecipeError),
    #[error(transparent)]
    Format(#[from] finetuned_formats::FormatError),
    #[error(transparent)]
    Data(#[from] finetuned_data::DataError),
    #[error(transparent)]
    Tensor(#[from] finetuned_shaders::TensorError),
    #[error(transparent)]
    Plugin(#[from] finetuned_plugin_api::PluginError),
    /// A tensor of the base model that is absent, of another shape, or damaged.
    #[error("tensor {tensor} {reason}")]
    Checkpoint { tensor: String, reason: String },
    /// An adapter that does not fit the model or the recipe.
    #[error("adapter: {0}")]
    Adapter(String),
    #[error("{path}: {reason}")]
    Io { path: PathBuf, reason: String },
    /// The folder holds another run.
    #[error("{out} holds a run with other settings ({difference}); give another --out, or --fresh to start over")]
    OtherRun { out: PathBuf, difference: String },
    /// The folder's run was trained with another build of a plugin.
    #[error(
        "the run began with {began} of the plugin '{name}', and this is {now}; start over (--fresh), put the earlier file back, or go on with the other build (--accept-plugin-change)"
    )]
    PluginChanged { name: String, began: String, now: String },
    #[error("device `{asked}`: {reason}")]
    Device { asked: String, reason: String },
    #[error("needs {} of memory, {device} has {}: {remedy}", mebibytes(.needed_bytes), mebibytes(.available_bytes))]
    TooLarge { device: String, needed_bytes: u64, available_bytes: u64, remedy: String },
    /// Memory ran short in a step that already takes one sequence at a time.
    #[error("{reason}, and a step takes one sequence at a time already; the last checkpoint is kept; {remedy}")]
    StepTooLarge { reason: String, remedy: String },
    #[error("step {step}: {what} is not a finite number; {remedy}")]
    NotFinite { step: usize, what: String, remedy: String },
    #[error(
        "what was saved does not compute what was trained: logits differ by {difference}, at most {allowed} expected"
    )]
    ReloadDiffers { difference: f64, allowed: f64 },
    #[error("{0}")]
    Other(String),
}

fn mebibytes(bytes: &u64) -> String {
    format!("{:.1} MiB", *bytes as f64 / f64::from(1 << 20))
}

impl EngineError {
    /// The device is not there, or failed on the way: the run itself is sound
    /// and goes on from its checkpoint once the device is back.
    pub fn is_of_the_device(&self) -> bool {
        use finetuned_shaders::TensorError::{Absent, Failed, Lost};
        matches!(self, EngineError::Device { .. } | EngineError::Tensor(Failed { .. } | Lost { .. } | Absent { .. }))
    }
}
