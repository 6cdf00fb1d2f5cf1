//! The recipe: everything about a run that is a choice, with its default.
//!
//! A recipe is layered: defaults, then finetuned.toml's `[recipe]`, then the
//! folder's recipe.toml, then the dataset's sidecar, then `--set key=value`.
//! Layers are TOML tables merged key by key; [`Recipe::from_table`] turns the
//! result into this type, and an unknown key is an error with the nearest name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A key of the recipe: what the documentation and the "did you mean" read.
pub struct Key {
    pub path: &'static str,
    pub default: &'static str,
    pub help: &'static str,
}

/// Every key, in the order of the documentation. Keys under `loss.` and
/// `optimizer.` beyond these belong to the loss or optimizer and are checked by
/// it.
pub const KEYS: &[Key] = &[
    key(
        "base",
        "\"smollm2-135m-instruct\"",
        "base model: a folder, a .gguf file or a name of the catalogue (finetune models)",
    ),
    key("method", "\"lora\"", "what is trained: \"full\", \"lora\" or \"qlora\" (LoRA over a base in 4-bit NF4)"),
    key("loss", "\"cross-entropy\"", "the objective: a name, or a table [loss] with name and its parameters"),
    key("lora.rank", "16", "rank r of the adapter's factors"),
    key("lora.alpha", "32", "scale: alpha/rank (lora, dora), alpha/sqrt(rank) (rslora)"),
    key("lora.dropout", "0.0", "probability of dropping an element of the adapter's input, 0 to 1"),
    key("lora.targets", "\"all-linear\"", "\"all-linear\" or a list of module names, such as [\"q_proj\", \"v_proj\"]"),
    key("lora.variant", "\"lora\"", "\"lora\", \"rslora\" or \"dora\""),
    key("lora.rank_pattern", "{}", "table: module name or regular expression = rank of its own, as in PEFT"),
    key("lora.alpha_pattern", "{}", "table: module name or regular expression = alpha of its own, as in PEFT"),
    key("qlora.double_quant", "true", "quantise the block scales of the 4-bit base as well"),
    key("train.epochs", "3", "passes over the training rows; ignored where train.steps is set"),
    key("train.steps", "unset", "optimizer steps in all; unset: from epochs"),
    key("train.batch_size", "8", "sequences per optimizer step"),
    key("train.micro_batch_size", "0", "sequences per forward pass; 0: the most that fits well, at most batch_size"),
    key("train.sequence_length", "1024", "most tokens of a row; see data.too_long"),
    key("train.packing", "false", "several short rows in one sequence, each seeing only itself"),
    key("train.shuffle", "true", "new order of the rows in every epoch, from the seed"),
    key("train.learning_rate", "2e-4 (full: 2e-5)", "peak learning rate"),
    key("train.schedule", "\"cosine\"", "\"constant\", \"linear\" or \"cosine\" decay to zero after the warm-up"),
    key("train.warmup_steps", "unset", "steps of linear warm-up; unset: from warmup_ratio"),
    key("train.warmup_ratio", "0.03", "warm-up as a share of all steps, rounded down"),
    key("train.max_grad_norm", "1.0", "gradients are scaled down to this norm; 0 turns it off"),
    key("train.seed", "42", "seed of every random choice of the run"),
    key(
        "train.gradient_checkpointing",
        "false",
        "keep one activation a layer and recompute the rest: less memory, a third more time",
    ),
    key(
        "train.offload_activations",
        "false",
        "with gradient_checkpointing on a GPU: what is kept waits in host memory; less of the GPU's, some time for the copies",
    ),
    key("train.validation_fraction", "0.05", "share of the rows held out, where no validation file is given"),
    key("train.validation_every", "0", "steps between validations; 0: at the start, after each epoch and at the end"),
    key("train.early_stop_patience", "0", "stop after so many validations without a better loss; 0 turns it off"),
    key("train.keep_best", "true", "hand out the weights of the best validation, not the last"),
    key("data.too_long", "\"drop\"", "rows over sequence_length: \"drop\", \"truncate\" or \"refuse\""),
    key("data.train_on", "\"assistant\"", "\"assistant\": only its turns; \"all\": every token"),
    key("data.drop_duplicates", "false", "train on each distinct row once"),
    key("data.max_rows", "unset", "use at most this many rows"),
    key("optimizer.name", "\"adamw\"", "the optimizer; its own parameters are keys beside the name"),
    key("optimizer.beta1", "0.9", "decay of the first moment (adamw)"),
    key("optimizer.beta2", "0.999", "decay of the second moment (adamw)"),
    key("optimizer.epsilon", "1e-8", "added to the root of the second moment (adamw)"),
    key("optimizer.weight_decay", "0.0", "decoupled weight decay"),
    key("checkpoint.every_steps", "50", "steps between checkpoints; 0: only when stopped"),
    key("checkpoint.keep", "2", "checkpoints kept"),
];

const fn key(path: &'static str, default: &'static str, help: &'static str) -> Key {
    Key { path, default, help }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    Full,
    Lora,
    Qlora,
}

impl Method {
    pub fn name(self) -> &'static str {
        match self {
            Method::Full => "full",
            Method::Lora => "lora",
            Method::Qlora => "qlora",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    Lora,
    Rslora,
    Dora,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    Constant,
    Linear,
    Cosine,
}

/// `"all-linear"` or a list of module names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    Named(String),
    List(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraRecipe {
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f64,
    pub targets: Targets,
    pub variant: Variant,
    pub rank_pattern: BTreeMap<String, usize>,
    pub alpha_pattern: BTreeMap<String, f64>,
}

impl Default for LoraRecipe {
    fn default() -> Self {
        LoraRecipe {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            targets: Targets::Named("all-linear".into()),
            variant: Variant::Lora,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QloraRecipe {
    pub double_quant: bool,
}

impl Default for QloraRecipe {
    fn default() -> Self {
        QloraRecipe { double_quant: true }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainRecipe {
    pub epochs: f64,
    pub steps: Option<usize>,
    pub batch_size: usize,
    pub micro_batch_size: usize,
    pub sequence_length: usize,
    pub packing: bool,
    pub shuffle: bool,
    /// `None`: the method's default.
    pub learning_rate: Option<f64>,
    pub schedule: Schedule,
    pub warmup_steps: Option<usize>,
    pub warmup_ratio: f64,
    pub max_grad_norm: f64,
    pub seed: u64,
    pub gradient_checkpointing: bool,
    pub offload_activations: bool,
    pub validation_fraction: f64,
    pub validation_every: usize,
    pub early_stop_patience: usize,
    pub keep_best: bool,
}

impl Default for TrainRecipe {
    fn default() -> Self {
        TrainRecipe {
            epochs: 3.0,
            steps: None,
            batch_size: 8,
            micro_batch_size: 0,
            sequence_length: 1024,
            packing: false,
            shuffle: true,
            learning_rate: None,
            schedule: Schedule::Cosine,
            warmup_steps: None,
            warmup_ratio: 0.03,
            max_grad_norm: 1.0,
            seed: 42,
            gradient_checkpointing: false,
            offload_activations: false,
            validation_fraction: 0.05,
            validation_every: 0,
            early_stop_patience: 0,
            keep_best: true,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataRecipe {
    pub too_long: String,
    pub train_on: String,
    pub drop_duplicates: bool,
    pub max_rows: Option<usize>,
}

impl Default for DataRecipe {
    fn default() -> Self {
        DataRecipe { too_long: "drop".into(), train_on: "assistant".into(), drop_duplicates: false, max_rows: None }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointRecipe {
    pub every_steps: usize,
    pub keep: usize,
}

impl Default for CheckpointRecipe {
    fn default() -> Self {
        CheckpointRecipe { every_steps: 50, keep: 2 }
    }
}

/// A plugin by name with its parameters (`[loss]`, `[optimizer]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Chosen {
    pub name: String,
    #[serde(flatten)]
    pub parameters: serde_json::Map<String, serde_json::Value>,
}

/// The whole recipe of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    pub base: String,
    pub method: Method,
    pub loss: Chosen,
    pub lora: LoraRecipe,
    pub qlora: QloraRecipe,
    pub train: TrainRecipe,
    pub data: DataRecipe,
    pub optimizer: Chosen,
    pub checkpoint: CheckpointRecipe,
}

impl Default for Recipe {
    fn default() -> Self {
        let plain = |name: &str| Chosen { name: name.into(), parameters: serde_json::Map::new() };
        Recipe {
            base: "smollm2-135m-instruct".into(),
            method: Method::Lora,
            loss: plain("cross-entropy"),
            lora: LoraRecipe::default(),
            qlora: QloraRecipe::default(),
            train: TrainRecipe::default(),
            data: DataRecipe::default(),
            optimizer: plain("adamw"),
            checkpoint: CheckpointRecipe::default(),
        }
    }
}

/// A recipe that cannot be used, said so that its writer can mend it.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error("unknown key `{key}`{}", .nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownKey { key: String, nearest: Option<String> },
    #[error("`{key}`: {reason}")]
    BadValue { key: String, reason: String },
    #[error("{file}: {reason}")]
    BadFile { file: String, reason: String },
}

impl Recipe {
    /// The recipe of a merged table; keys that are absent take their defaults.
    ///
    /// # Errors
    /// Unknown keys (with the nearest known one), wrong types, values out of
    /// range.
    pub fn from_table(table: &toml::Table) -> Result<Recipe, RecipeError> {
        crate::recipe_table::recipe_from_table(table)
    }

    /// The learning rate, or the method's default.
    pub fn learning_rate(&self) -> f64 {
        self.train.learning_rate.unwrap_or(match self.method {
            Method::Full => 2e-5,
            Method::Lora | Method::Qlora => 2e-4,
        })
    }
}

/// Merges `upper` over `lower`, table by table, key by key. `loss = "dpo"` is
/// short for `loss.name = "dpo"`; so is `optimizer = "sgd"`.
pub fn merge(lower: &mut toml::Table, upper: &toml::Table) {
    for (key, value) in upper {
        let value = match (key.as_str(), value) {
            ("loss" | "optimizer", toml::Value::String(name)) => {
                toml::Value::Table(toml::Table::from_iter([("name".to_string(), toml::Value::String(name.clone()))]))
            }
            _ => value.clone(),
        };
        match (lower.get_mut(key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => merge(below, &above),
            (_, value) => {
                lower.insert(key.clone(), value);
            }
        }
    }
}

/// Reads one `--set key=value`: the value is TOML where it parses as TOML, else
/// a string (`loss.name=dpo` needs no quotes).
///
/// # Errors
/// A text without `=`, or an empty part of the key.
pub fn set(table: &mut toml::Table, assignment: &str) -> Result<(), RecipeError> {
    crate::recipe_table::set(table, assignment)
}
