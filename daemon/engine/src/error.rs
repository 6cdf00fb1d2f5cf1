//! The engine's errors: what failed, where, what to do, and of which kind it is.

use std::io;
use std::path::{Path, PathBuf};

use finetuned_data::DataError;
use finetuned_formats::FormatError;
use finetuned_plugin_api::PluginError;
use finetuned_shaders::TensorError;
use serde::{Deserialize, Serialize};

use crate::recipe::RecipeError;

/// What an error is about. A caller decides by it (an HTTP status, an exit code, pause
/// or failure of a job), and never by the words of a message.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, strum::Display, strum::EnumString, strum::EnumIter,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum ErrorKind {
    /// A dataset, model, adapter, recipe or request that cannot be used as it is.
    BadInput,
    /// A file or thing that was named and does not exist.
    NotFound,
    /// The request contradicts what is there already: another run in the folder,
    /// another build of a plugin, another process at work.
    Conflict,
    /// The device or the host has too little memory.
    OutOfMemory,
    /// The device is absent, failed, or was lost. The run itself is sound: it goes on
    /// from its checkpoint once the device is back.
    Device,
    /// A plugin failed, or broke its contract.
    Plugin,
    /// A loss, gradient or weight is not a finite number.
    NotFinite,
    /// A file could not be read or written, or the disk is full.
    Storage,
    /// Someone asked for the end.
    Cancelled,
    /// A fault of this program.
    Internal,
}

/// Why the engine refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// A tensor of the base model that is absent, of another shape, or damaged.
    #[error("tensor {tensor} {reason}")]
    Checkpoint { tensor: String, reason: String },
    /// An adapter that does not fit the model or the recipe.
    #[error("adapter: {0}")]
    Adapter(String),
    /// The dataset is not of the kind that the objective learns from.
    #[error("the dataset holds {found}, the loss learns from {asks}{remedy}")]
    WrongData { found: &'static str, asks: &'static str, remedy: &'static str },
    /// A value head reads each sequence's last token.
    #[error("a sequence without any token has no value")]
    EmptySequence,
    #[error("the prompt has no token")]
    EmptyPrompt,
    #[error("the prompt has {tokens} tokens, the model's context holds {context} with the answer")]
    PromptTooLong { tokens: usize, context: usize },
    /// A name that is not one of the shapes that can be measured without a checkpoint.
    #[error("no shape is called `{name}`; there are {known}")]
    UnknownShape { name: String, known: String },
    #[error("give --model or --shape")]
    NothingToMeasure,
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// A file of a run's folder that does not hold what this program writes.
    #[error("{}: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    /// Another process holds the folder's lock.
    #[error("{}: another process is training into this folder", path.display())]
    Busy { path: PathBuf },
    /// The folder holds another run.
    #[error("{out} holds a run with other settings ({difference}); give another --out, or --fresh to start over")]
    OtherRun { out: PathBuf, difference: String },
    /// The folder's run was trained with another build of a plugin.
    #[error(
        "the run began with {began} of the plugin '{name}', and this is {now}; start over (--fresh), put the earlier file back, or go on with the other build (--accept-plugin-change)"
    )]
    PluginChanged { name: String, began: String, now: String },
    /// A sound checkpoint that does not fit this run.
    #[error("{}: {reason}", path.display())]
    OtherCheckpoint { path: PathBuf, reason: String },
    /// A sound checkpoint of another optimizer or another setting of it.
    #[error("the checkpoint lacks the optimizer state {state}, or has another size of it")]
    OtherOptimizerState { state: String },
    #[error("device `{asked}`: {reason}")]
    Device { asked: String, reason: String },
    #[error("needs {} of memory, {device} has {}: {remedy}", mebibytes(.needed_bytes), mebibytes(.available_bytes))]
    TooLarge { device: String, needed_bytes: u64, available_bytes: u64, remedy: String },
    /// Memory ran short in a step that already takes one sequence at a time.
    #[error("{reason}, and a step takes one sequence at a time already; the last checkpoint is kept; {remedy}")]
    StepTooLarge { reason: String, remedy: String },
    #[error("step {step}: {what} is not a finite number; {remedy}")]
    NotFinite { step: usize, what: String, remedy: String },
    /// While writing an answer.
    #[error("the model's logits are not finite numbers")]
    LogitsNotFinite,
    #[error(
        "what was saved does not compute what was trained: logits differ by {difference}, at most {allowed} expected"
    )]
    ReloadDiffers { difference: f64, allowed: f64 },
    /// An objective that reads values over a model without a value head.
    #[error("the objective asks for values, and the model has no value head")]
    NoValueHead,
    /// A name that is not in the model's list of parameters.
    #[error("no parameter {name}")]
    NoParameter { name: String },
    /// A value of this program that does not become JSON.
    #[error("cannot write {what} as JSON: {source}")]
    Json { what: &'static str, source: serde_json::Error },
}

fn mebibytes(bytes: &u64) -> String {
    format!("{:.1} MiB", *bytes as f64 / f64::from(1 << 20))
}

impl EngineError {
    /// Wraps what the system said about this file or folder.
    pub(crate) fn io(path: &Path) -> impl Fn(io::Error) -> EngineError + '_ {
        |source| EngineError::Io { path: path.to_path_buf(), source }
    }

    /// Wraps a failure of serde_json to write `what`.
    pub(crate) fn json(what: &'static str) -> impl Fn(serde_json::Error) -> EngineError {
        move |source| EngineError::Json { what, source }
    }

    /// What this error is about: the one place in which the errors of the crates below
    /// get a kind.
    pub fn kind(&self) -> ErrorKind {
        match self {
            EngineError::Recipe(
                RecipeError::UnknownKey { .. } | RecipeError::BadValue { .. } | RecipeError::BadFile { .. },
            ) => ErrorKind::BadInput,
            EngineError::Format(error) => of_format(error),
            EngineError::Data(error) => of_data(error),
            EngineError::Tensor(error) => of_tensor(error),
            EngineError::Plugin(error) => of_plugin(error),
            EngineError::Checkpoint { .. }
            | EngineError::Adapter(_)
            | EngineError::WrongData { .. }
            | EngineError::EmptySequence
            | EngineError::EmptyPrompt
            | EngineError::PromptTooLong { .. }
            | EngineError::UnknownShape { .. }
            | EngineError::NothingToMeasure => ErrorKind::BadInput,
            EngineError::Io { source, .. } => of_io(source),
            EngineError::Damaged { .. } => ErrorKind::Storage,
            EngineError::Busy { .. }
            | EngineError::OtherRun { .. }
            | EngineError::PluginChanged { .. }
            | EngineError::OtherCheckpoint { .. }
            | EngineError::OtherOptimizerState { .. } => ErrorKind::Conflict,
            EngineError::Device { .. } => ErrorKind::Device,
            EngineError::TooLarge { .. } | EngineError::StepTooLarge { .. } => ErrorKind::OutOfMemory,
            EngineError::NotFinite { .. } | EngineError::LogitsNotFinite => ErrorKind::NotFinite,
            EngineError::ReloadDiffers { .. }
            | EngineError::NoValueHead
            | EngineError::NoParameter { .. }
            | EngineError::Json { .. } => ErrorKind::Internal,
        }
    }

    /// Whether the device is absent or failed on the way.
    pub fn is_of_the_device(&self) -> bool {
        self.kind() == ErrorKind::Device
    }
}

fn of_io(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        _ => ErrorKind::Storage,
    }
}

fn of_format(error: &FormatError) -> ErrorKind {
    match error {
        FormatError::Io { source, .. } => of_io(source),
        FormatError::NoSpace { .. } => ErrorKind::Storage,
        FormatError::Missing { .. } => ErrorKind::NotFound,
        FormatError::Damaged { .. }
        | FormatError::Setting { .. }
        | FormatError::UnsupportedModel { .. }
        | FormatError::UnsupportedRope { .. }
        | FormatError::Unsupported { .. }
        | FormatError::NoSuchTensor { .. } => ErrorKind::BadInput,
        FormatError::Shape { .. } => ErrorKind::Internal,
    }
}

fn of_data(error: &DataError) -> ErrorKind {
    match error {
        DataError::Read { source, .. } => of_io(source),
        DataError::File { .. }
        | DataError::TooLong { .. }
        | DataError::Tokenizer(_)
        | DataError::Template(_)
        | DataError::Render(_)
        | DataError::Option { .. } => ErrorKind::BadInput,
    }
}

fn of_tensor(error: &TensorError) -> ErrorKind {
    match error {
        TensorError::Memory { .. } => ErrorKind::OutOfMemory,
        TensorError::Failed { .. } | TensorError::Lost { .. } | TensorError::Absent { .. } => ErrorKind::Device,
        TensorError::Words { .. } => ErrorKind::BadInput,
        TensorError::Shape { .. }
        | TensorError::Type { .. }
        | TensorError::Index { .. }
        | TensorError::Shared { .. }
        | TensorError::Device { .. } => ErrorKind::Internal,
    }
}

fn of_plugin(error: &PluginError) -> ErrorKind {
    match error {
        PluginError::Unknown { .. } | PluginError::UnknownParameter { .. } | PluginError::Parameter { .. } => {
            ErrorKind::BadInput
        }
        PluginError::Shape { .. }
        | PluginError::Program { .. }
        | PluginError::Batch(_)
        | PluginError::Failed(_)
        | PluginError::Conformance { .. }
        | PluginError::Call { .. }
        | PluginError::Incompatible { .. }
        | PluginError::NameTaken { .. }
        | PluginError::Refused(_) => ErrorKind::Plugin,
        PluginError::System { .. } => ErrorKind::Storage,
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use strum::IntoEnumIterator;

    use super::*;

    #[test]
    fn a_kind_is_the_same_word_everywhere() {
        for kind in ErrorKind::iter() {
            let word = kind.to_string();
            assert_eq!(serde_json::to_value(kind).expect("JSON"), serde_json::Value::from(word.as_str()));
            assert_eq!(ErrorKind::from_str(&word), Ok(kind));
        }
        assert_eq!(ErrorKind::OutOfMemory.to_string(), "out-of-memory");
    }

    #[test]
    fn errors_from_below_keep_their_kind() {
        let memory = TensorError::Memory { op: "matmul", bytes: 8, device: "cpu".into() };
        let lost = TensorError::Lost { op: "matmul", device: "gpu".into(), reason: String::new() };
        let read = |kind: io::ErrorKind| DataError::Read { path: "a".into(), source: kind.into() };
        for (error, kind) in [
            (EngineError::from(memory), ErrorKind::OutOfMemory),
            (lost.into(), ErrorKind::Device),
            (PluginError::Failed("it is ill".into()).into(), ErrorKind::Plugin),
            (FormatError::NoSpace { path: "a".into() }.into(), ErrorKind::Storage),
            (read(io::ErrorKind::NotFound).into(), ErrorKind::NotFound),
            (read(io::ErrorKind::PermissionDenied).into(), ErrorKind::Storage),
        ] {
            assert_eq!(error.kind(), kind, "{error}");
        }
    }
}
