//! The recipe: everything about a run that is a choice.
//!
//! A recipe is layered: defaults, then finetuned.toml's `[recipe]`, then the
//! folder's recipe.toml, then the dataset's sidecar, then `--set key=value`.
//! Layers are TOML tables that are merged key by key; [`Recipe::from_table`] turns
//! the result into this type, and an unknown key is an error with the nearest name.
//!
//! Each key is declared once, here, with `keys!`; see [`crate::keys`]. To add
//! one: declare it, read it where it acts, and write the documented configuration
//! anew (`finetune config template > config/finetuned.toml`).

mod table;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use finetuned_data::{DEFAULT_SEQUENCE_LENGTH, TooLong, TrainOn};
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantNames};

use crate::keys::{Key, KeyValue, Kind, Section, above, any, at_least, keys, share};

/// The sections of a recipe in the order of the documentation; the first holds the
/// keys at the root.
pub static SECTIONS: LazyLock<Vec<Section>> = LazyLock::new(|| {
    vec![
        Recipe::section(),
        LoraRecipe::section(),
        QloraRecipe::section(),
        TrainRecipe::section(),
        DataRecipe::section(),
        optimizer_section(),
        CheckpointRecipe::section(),
    ]
});

/// Every key of a recipe. The keys under `loss.` and `optimizer.` beyond these
/// belong to the plugin that is named there, which checks them.
pub static KEYS: LazyLock<Vec<Key>> =
    LazyLock::new(|| SECTIONS.iter().flat_map(|section| section.keys.clone()).collect());

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, VariantNames, IntoStaticStr)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Method {
    /// Every weight of the base model.
    Full,
    /// An adapter beside the frozen base model.
    Lora,
    /// An adapter beside a base model in 4-bit NF4.
    Qlora,
}

impl Method {
    /// As a recipe writes it.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// How an adapter's factors act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, VariantNames)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Variant {
    /// Scaled by alpha/r.
    Lora,
    /// Scaled by alpha/sqrt(r).
    Rslora,
    /// With a learnt magnitude per output.
    Dora,
}

/// The learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, VariantNames)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Schedule {
    /// Stays at the peak.
    Constant,
    /// Falls to zero in a line.
    Linear,
    /// Falls to zero in half a cosine.
    Cosine,
}

/// The modules that carry an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// `"all-linear"`; no other word is allowed.
    Named(String),
    /// Names of modules.
    List(Vec<String>),
}

impl Targets {
    /// The word for every linear layer.
    pub const ALL: &'static str = "all-linear";
}

/// A plugin by name with its parameters (`[loss]`, `[optimizer]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Chosen {
    /// The plugin's name.
    pub name: String,
    /// Its parameters; the plugin checks them.
    #[serde(flatten)]
    pub parameters: serde_json::Map<String, serde_json::Value>,
}

impl Chosen {
    /// A plugin with its own defaults.
    pub fn named(name: &str) -> Chosen {
        Chosen { name: name.into(), parameters: serde_json::Map::new() }
    }
}

impl KeyValue for Method {
    const KIND: Kind = Kind::Word(Method::VARIANTS);
}

impl KeyValue for Variant {
    const KIND: Kind = Kind::Word(Variant::VARIANTS);
}

impl KeyValue for Schedule {
    const KIND: Kind = Kind::Word(Schedule::VARIANTS);
}

impl KeyValue for Targets {
    const KIND: Kind = Kind::Names(Targets::ALL);
}

impl KeyValue for Chosen {
    const KIND: Kind = Kind::Plugin;

    fn toml(&self) -> Option<String> {
        self.name.toml()
    }
}

keys! {
    /// The recipe that every job starts from. Over it go the folder's recipe.toml,
    /// the dataset's own .toml beside it, and `--set key=value`.
    pub struct Recipe in "" {
        /// The base model: a folder, a .gguf file, or a name of the catalogue
        /// (`finetune models`).
        base: String = "smollm2-135m-instruct".into(), any();

        /// What is trained. "lora": small factors beside the frozen weights (a few MB,
        /// the usual choice). "qlora": the same beside a base model in 4 bits (NF4): a
        /// quarter of the memory, somewhat slower. "full": every weight, for small
        /// models or much data.
        method: Method = Method::Lora, any();

        /// The objective: a name of `finetune plugin list`, or a table `[recipe.loss]`
        /// with the name and its parameters (`finetune plugin show NAME`). Preference
        /// data wants "dpo", "orpo", "simpo" or "cpo"; labelled answers want "kto".
        loss: Chosen = Chosen::named("cross-entropy"), any();

        => {
            /// The adapter.
            lora: LoraRecipe = LoraRecipe::default();
            /// The 4-bit base model.
            qlora: QloraRecipe = QloraRecipe::default();
            /// Steps, batches and the learning rate.
            train: TrainRecipe = TrainRecipe::default();
            /// The dataset.
            data: DataRecipe = DataRecipe::default();
            /// The optimizer and its parameters.
            optimizer: Chosen = Chosen::named("adamw");
            /// What a crash can cost.
            checkpoint: CheckpointRecipe = CheckpointRecipe::default();
        }
    }
}

keys! {
    /// The adapter of the methods "lora" and "qlora".
    pub struct LoraRecipe in "lora" {
        /// Rank of the factors: 8 for style and format, 16 to 64 for new knowledge.
        rank: usize = 16, at_least(1);

        /// The update is scaled by alpha/rank (rslora: alpha/sqrt(rank)). Twice the
        /// rank is the usual choice; change the learning rate before you change this.
        alpha: f64 = 32.0, above(0);

        /// Share of the adapter's inputs that is dropped at random. 0.05 helps on small
        /// datasets.
        dropout: f64 = 0.0, share();

        /// The layers that carry an adapter: "all-linear", or names such as
        /// `["q_proj", "v_proj"]`. All linear layers learn better than attention alone.
        targets: Targets = Targets::Named(Targets::ALL.into()), any();

        /// "lora"; "rslora" keeps its strength at high ranks; "dora" also learns the
        /// magnitude of each output: a little better at low ranks, slower.
        variant: Variant = Variant::Lora, any();

        /// Other ranks for some modules, by name or regular expression, as in PEFT:
        /// `{ "layers.0.self_attn.q_proj" = 32 }`.
        rank_pattern: BTreeMap<String, usize> = BTreeMap::new(), any();

        /// Other alphas for some modules, in the same way.
        alpha_pattern: BTreeMap<String, f64> = BTreeMap::new(), any();
    }
}

keys! {
    /// The 4-bit base model of the method "qlora".
    pub struct QloraRecipe in "qlora" {
        /// Quantise the block scales of the 4-bit base model as well: 0.4 bits less per
        /// weight, at no measurable loss.
        double_quant: bool = true, any();
    }
}

keys! {
    /// Steps, batches and the learning rate.
    pub struct TrainRecipe in "train" {
        /// Passes over the training rows; ignored if steps is set. 1 for much data, 3
        /// for hundreds of rows. More overfits: watch the validation loss.
        epochs: f64 = 3.0, above(0), unit("epochs");

        /// Optimizer steps in all. Unset: from epochs. Set it for a run of known
        /// length.
        steps: Option<usize> = None, at_least(1), unit("steps"), example("100");

        /// Sequences per optimizer step. The loss is divided once by the trained tokens
        /// of the whole step, so the result does not depend on micro_batch_size. More
        /// makes the gradient smoother, and the step longer.
        batch_size: usize = 8, at_least(1), unit("sequences");

        /// Sequences per forward pass. 0: as many as fit well, at most batch_size.
        micro_batch_size: usize = 0, any(), unit("sequences");

        /// Most tokens of a row. The memory of the activations grows with it. For
        /// longer rows see data.too_long.
        sequence_length: usize = DEFAULT_SEQUENCE_LENGTH, at_least(2), unit("tokens");

        /// Put several short rows into one sequence, each seeing only itself: fewer
        /// wasted positions on short rows, and more rows per step.
        packing: bool = false, any();

        /// Take the rows in a new order in every epoch; the order follows from the
        /// seed.
        shuffle: bool = true, any();

        /// Peak learning rate. Unset: 2e-4 for lora and qlora, 2e-5 for full. Halve it
        /// if the loss jumps, double it if the loss hardly falls.
        learning_rate: Option<f64> = None, above(0), unset("2e-4 (full: 2e-5)"), example("2e-4");

        /// The learning rate after the warm-up: "constant", or "linear" or "cosine" decay
        /// to zero.
        schedule: Schedule = Schedule::Cosine, any();

        /// Steps of linear warm-up. Unset: from warmup_ratio.
        warmup_steps: Option<usize> = None, any(), unit("steps"), example("10");

        /// Warm-up as a share of all steps, rounded down.
        warmup_ratio: f64 = 0.03, share();

        /// Gradients are scaled down to this norm, so that one strange batch does no
        /// harm. 0 turns it off.
        max_grad_norm: f64 = 1.0, at_least(0);

        /// Seed of every random choice of the run. The same seed gives the same bits.
        seed: u64 = 42, any();

        /// Keep one activation per layer and recompute the rest: far less memory, about
        /// a third more time. The result is the same bits.
        gradient_checkpointing: bool = false, any(), changes_no_bit();

        /// On a GPU, with gradient_checkpointing: keep the layers' inputs in host memory
        /// (tokens x layers x width x 4 bytes of a micro-batch) and fetch them back layer
        /// by layer. The GPU then holds one layer's input. Every step copies all of them
        /// there and back, which a run that fits without should not pay. The result is
        /// the same bits.
        offload_activations: bool = false, any(), changes_no_bit();

        /// Share of the rows that is kept for validation if no validation file is given.
        validation_fraction: f64 = 0.05, share();

        /// Steps between validations. 0: at the start, after each epoch and at the end.
        validation_every: usize = 0, any(), unit("steps");

        /// Stop after this many validations without a lower loss. 0 turns it off.
        early_stop_patience: usize = 0, any(), unit("validations");

        /// Hand out the weights of the best validation, not of the last step.
        keep_best: bool = true, any();
    }
}

keys! {
    /// The dataset.
    pub struct DataRecipe in "data" {
        /// Rows over sequence_length: "drop" (and count) them, "truncate" them, or
        /// "refuse" the dataset.
        too_long: TooLong = TooLong::Drop, any();

        /// "assistant": train only on the assistant's turns; "all": on every token.
        train_on: TrainOn = TrainOn::Assistant, any();

        /// Train on each distinct row once. Duplicates are always counted and reported.
        drop_duplicates: bool = false, any();

        /// Use at most this many rows: for a quick trial on a large file. Unset: all.
        max_rows: Option<usize> = None, any(), unit("rows"), example("1000");
    }
}

keys! {
    /// What a crash can cost.
    pub struct CheckpointRecipe in "checkpoint" {
        /// Steps between checkpoints; 0: only when the run is stopped. After a crash or
        /// a power cut at most this many steps are repeated, to the same bits.
        every_steps: usize = 50, any(), unit("steps"), changes_no_bit();

        /// Checkpoints that are kept.
        keep: usize = 2, at_least(1), unit("checkpoints"), changes_no_bit();
    }
}

/// Weight decay is off unless the recipe says otherwise, whatever the optimizer's
/// own default is: adapters rarely need it.
pub const WEIGHT_DECAY: f64 = 0.0;

/// The keys of `[optimizer]` that belong to the recipe. The struct is [`Chosen`],
/// because the other keys belong to the optimizer.
fn optimizer_section() -> Section {
    let key = |name: &str, kind, range, default: Option<String>, help: &[&str]| {
        Key::new("optimizer", name, kind, range, default, help)
    };
    let name = Recipe::default().optimizer.name;
    let keys = vec![
        key("name", Kind::Text, any(), name.toml(), &["The optimizer: a name of `finetune plugin list`."]),
        key(
            "weight_decay",
            Kind::Number,
            any(),
            WEIGHT_DECAY.toml(),
            &["Decoupled weight decay. Adapters rarely need it."],
        ),
    ];
    Section::new("optimizer", &["The optimizer. Its own parameters are keys beside the name."], keys)
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
        table::recipe_from_table(table)
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

/// Reads one `--set key=value`: the value is TOML if it parses as TOML, else
/// a string (`loss.name=dpo` needs no quotes).
///
/// # Errors
/// A text without `=`, or an empty part of the key.
pub fn set(table: &mut toml::Table, assignment: &str) -> Result<(), RecipeError> {
    table::set(table, assignment)
}
