//! `adapter_config.json`: which modules have an adapter, of what rank and scale.

use crate::config::Reader;
use crate::error::FormatError;
use regex::Regex;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The version of PEFT whose files these are.
const PEFT_VERSION: &str = "0.21.2";

/// transformers' name of the layer that makes a reward of a hidden state.
pub(super) const SCORE: &str = "score";

/// Which modules have an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// Names; a module is meant if its name or the end of its path is one.
    Names(Vec<String>),
    /// A regular expression for the whole path.
    Pattern(String),
    /// Every linear layer but the output head.
    AllLinear,
}

/// Restricts names to some layers (`layers_to_transform`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerPattern {
    /// Layer numbers; empty means all.
    pub layers: Vec<usize>,
    /// What stands before a layer's number in a path; empty means anything.
    pub patterns: Vec<String>,
}

/// A LoRA adapter's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct PeftConfig {
    /// The model that the adapter was trained on, as the writer named it.
    pub base_model: Option<String>,
    /// Revision of that model.
    pub revision: Option<String>,
    /// Rank where `rank_pattern` says nothing.
    pub rank: usize,
    /// Alpha where `alpha_pattern` says nothing.
    pub alpha: f64,
    /// Dropout before A, in training.
    pub dropout: f64,
    /// Scale alpha / √rank instead of alpha / rank.
    pub rslora: bool,
    /// Weight-decomposed: a magnitude per output row.
    pub dora: bool,
    /// The base weight is stored `[in, out]` (GPT-2's Conv1D).
    pub fan_in_fan_out: bool,
    /// Which modules.
    pub targets: TargetModules,
    /// Modules that `targets` would hit and that have none.
    pub excluded: Option<TargetModules>,
    /// Only some layers.
    pub only_layers: LayerPattern,
    /// Ranks of modules by pattern; the first that matches counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas of modules by pattern; the first that matches counts.
    pub alpha_pattern: Vec<(String, f64)>,
    /// `CAUSAL_LM` for a language model, `SEQ_CLS` for a reward model.
    pub task_type: Option<String>,
    /// The weights hold a trained `score` layer beside the adapters
    /// (`modules_to_save`): the value head of a reward model.
    pub value_head: bool,
    /// Saved for use rather than for further training.
    pub inference_mode: bool,
    /// How A and B were initialised: `true`, `false`, or a name that leaves
    /// the base weights alone.
    pub init: Value,
}

impl Default for PeftConfig {
    fn default() -> PeftConfig {
        PeftConfig {
            base_model: None,
            revision: None,
            rank: 8,
            alpha: 8.0,
            dropout: 0.0,
            rslora: false,
            dora: false,
            fan_in_fan_out: false,
            targets: TargetModules::AllLinear,
            excluded: None,
            only_layers: LayerPattern::default(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            task_type: Some("CAUSAL_LM".into()),
            value_head: false,
            inference_mode: true,
            init: Value::Bool(true),
        }
    }
}

/// Settings that change what an adapter computes and that are not implemented;
/// any value but none, false or empty is refused by name.
const REFUSED: &[&str] = &[
    "alora_invocation_tokens",
    "arrow_config",
    "ensure_weight_tying",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

/// Settings that are read, or that change nothing in a finished adapter.
const KNOWN: &[&str] = &[
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
];

impl PeftConfig {
    /// Reads an `adapter_config.json`.
    ///
    /// # Errors
    /// Another method than LoRA, and every setting that changes the maths and
    /// is not implemented, by name. `path` is only for the messages.
    pub fn from_json(raw: &Value, path: &Path) -> Result<PeftConfig, FormatError> {
        let Some(object) = raw.as_object() else {
            return Err(FormatError::damaged(path, "it holds no JSON object"));
        };
        let reader = Reader::new(object, path);
        match reader.text("peft_type")? {
            Some("LORA") => {}
            other => {
                return Err(FormatError::unsupported(
                    path,
                    format!("an adapter of type {}", other.unwrap_or("unknown")),
                    "only LoRA adapters (with rsLoRA and DoRA) are read",
                ));
            }
        }
        refuse_unsupported(object, path)?;
        if let Some(bias) = reader.text("bias")?
            && bias != "none"
        {
            return Err(FormatError::unsupported(
                path,
                format!("bias = {bias:?}"),
                "only adapters that leave the biases alone are read",
            ));
        }
        let targets = modules(&reader, "target_modules")?
            .ok_or_else(|| FormatError::missing(path, "target_modules", "an adapter has to name its modules"))?;
        let init = object.get("init_lora_weights").cloned().unwrap_or(Value::Bool(true));
        check_init(&init, path)?;
        let rank = reader.size_or("r", 8)?;
        let alpha = reader.number_or("lora_alpha", 8.0)?;
        let mut rank_pattern = Vec::new();
        if let Some(patterns) = reader.object("rank_pattern")? {
            let inner = Reader::within(patterns, path, "rank_pattern");
            for pattern in patterns.keys() {
                check_pattern(pattern, path)?;
                if let Some(rank) = inner.size(pattern)? {
                    rank_pattern.push((pattern.clone(), rank));
                }
            }
        }
        let mut alpha_pattern = Vec::new();
        if let Some(patterns) = reader.object("alpha_pattern")? {
            let inner = Reader::within(patterns, path, "alpha_pattern");
            for pattern in patterns.keys() {
                check_pattern(pattern, path)?;
                alpha_pattern.push((pattern.clone(), inner.number_needed(pattern)?));
            }
        }
        for rank in rank_pattern.iter().map(|(_, rank)| *rank).chain([rank]) {
            if rank == 0 || rank > 1 << 20 {
                return Err(reader.wrong("r", "a rank of at least 1", rank.to_string()));
            }
        }
        let dropout = reader.number_or("lora_dropout", 0.0)?;
        if !(0.0..1.0).contains(&dropout) {
            return Err(reader.wrong("lora_dropout", "0 to below 1", dropout.to_string()));
        }
        let one_or_many = |key: &str| -> Vec<Value> {
            match reader.value(key) {
                None => Vec::new(),
                Some(Value::Array(list)) => list.clone(),
                Some(one) => vec![one.clone()],
            }
        };
        let mut only_layers = LayerPattern::default();
        for layer in one_or_many("layers_to_transform") {
            let layer = layer.as_u64().and_then(|n| usize::try_from(n).ok());
            only_layers
                .layers
                .push(layer.ok_or_else(|| reader.wrong("layers_to_transform", "layer numbers", "something else"))?);
        }
        for pattern in one_or_many("layers_pattern") {
            let pattern = pattern.as_str().ok_or_else(|| reader.wrong("layers_pattern", "names", "something else"))?;
            check_pattern(pattern, path)?;
            only_layers.patterns.push(pattern.to_string());
        }
        Ok(PeftConfig {
            base_model: reader.text("base_model_name_or_path")?.map(str::to_string),
            revision: reader.text("revision")?.map(str::to_string),
            rank,
            alpha,
            dropout,
            rslora: reader.flag_or("use_rslora", false)?,
            dora: reader.flag_or("use_dora", false)?,
            fan_in_fan_out: reader.flag_or("fan_in_fan_out", false)?,
            targets,
            excluded: modules(&reader, "exclude_modules")?,
            only_layers,
            rank_pattern,
            alpha_pattern,
            task_type: reader.text("task_type")?.map(str::to_string),
            value_head: has_value_head(object, path)?,
            inference_mode: reader.flag_or("inference_mode", true)?,
            init,
        })
    }

    /// The `adapter_config.json` that PEFT would write: every key, sorted.
    pub fn to_json(&self) -> Value {
        let number = |x: f64| {
            // PEFT keeps 16 as 16; as 16.0 it would be another file.
            if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
        };
        let modules = |targets: &TargetModules| match targets {
            TargetModules::Names(names) => json!(names),
            TargetModules::Pattern(pattern) => json!(pattern),
            TargetModules::AllLinear => json!("all-linear"),
        };
        let mut ranks = self.rank_pattern.clone();
        ranks.sort();
        let ranks: Map<String, Value> = ranks.into_iter().map(|(k, rank)| (k, json!(rank))).collect();
        let mut alphas = self.alpha_pattern.clone();
        alphas.sort_by(|a, b| a.0.cmp(&b.0));
        let alphas: Map<String, Value> = alphas.into_iter().map(|(k, alpha)| (k, number(alpha))).collect();
        let list_or_null = |empty: bool, list: Value| if empty { Value::Null } else { list };
        json!({
            "alora_invocation_tokens": null,
            "alpha_pattern": alphas,
            "arrow_config": null,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "corda_config": null,
            "ensure_weight_tying": false,
            "eva_config": null,
            "exclude_modules": self.excluded.as_ref().map(modules),
            "fan_in_fan_out": self.fan_in_fan_out,
            "inference_mode": self.inference_mode,
            "init_lora_weights": self.init,
            "kasa_config": null,
            "layer_replication": null,
            "layers_pattern": list_or_null(
                self.only_layers.patterns.is_empty(),
                json!(self.only_layers.patterns),
            ),
            "layers_to_transform": list_or_null(
                self.only_layers.layers.is_empty(),
                json!(self.only_layers.layers),
            ),
            "loftq_config": {},
            "lora_alpha": number(self.alpha),
            "lora_bias": false,
            "lora_dropout": self.dropout,
            "lora_ga_config": null,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": self.value_head.then_some([SCORE]),
            "monteclora_config": null,
            "peft_type": "LORA",
            "peft_version": PEFT_VERSION,
            "qalora_group_size": 16,
            "r": self.rank,
            "rank_pattern": ranks,
            "revision": self.revision,
            "target_modules": modules(&self.targets),
            "target_parameters": null,
            "task_type": self.task_type,
            "trainable_token_indices": null,
            "use_bdlora": null,
            "use_dora": self.dora,
            "use_qalora": false,
            "use_rslora": self.rslora,
            "velora_config": null,
        })
    }

    /// The rank of a module's adapter. `module` is its path in the base model:
    /// `model.layers.0.self_attn.q_proj`.
    pub fn rank_of(&self, module: &str) -> usize {
        first_match(&self.rank_pattern, module).unwrap_or(self.rank)
    }

    /// The alpha of a module's adapter.
    pub fn alpha_of(&self, module: &str) -> f64 {
        first_match(&self.alpha_pattern, module).unwrap_or(self.alpha)
    }

    /// What B·A is multiplied by in a module.
    pub fn scale_of(&self, module: &str) -> f64 {
        let rank = self.rank_of(module) as f64;
        let divisor = if self.rslora { rank.sqrt() } else { rank };
        self.alpha_of(module) / divisor
    }

    /// Whether a linear module has an adapter, by PEFT's rules.
    pub fn targets(&self, module: &str) -> bool {
        if self.excluded.as_ref().is_some_and(|e| matches(e, module)) {
            return false;
        }
        if !matches(&self.targets, module) {
            return false;
        }
        // A module named by its full path is meant in any layer.
        match &self.targets {
            TargetModules::Names(names) if !names.iter().any(|name| name == module) => self.only_layers.allows(module),
            _ => true,
        }
    }
}

impl LayerPattern {
    fn allows(&self, module: &str) -> bool {
        if self.layers.is_empty() {
            return true;
        }
        let number = |expression: &str| -> Option<usize> {
            let found = Regex::new(expression).ok()?.captures(module)?;
            found.name("idx")?.as_str().parse().ok()
        };
        let layer = if self.patterns.is_empty() {
            number(r"^.*?\.[^.]*\.(?P<idx>\d+)\.")
        } else {
            self.patterns.iter().find_map(|pattern| number(&format!(r"^(?:|.*?\.){pattern}\.(?P<idx>\d+)\.")))
        };
        layer.is_some_and(|layer| self.layers.contains(&layer))
    }
}

fn matches(targets: &TargetModules, module: &str) -> bool {
    match targets {
        TargetModules::AllLinear => module != "lm_head" && !module.ends_with(".lm_head"),
        TargetModules::Pattern(pattern) => {
            Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|regex| regex.is_match(module))
        }
        TargetModules::Names(names) => names
            .iter()
            .any(|name| module == name || module.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'))),
    }
}

fn first_match<T: Copy>(patterns: &[(String, T)], module: &str) -> Option<T> {
    patterns
        .iter()
        .find(|(pattern, _)| Regex::new(&format!(r"^(.*\.)?({pattern})$")).is_ok_and(|regex| regex.is_match(module)))
        .map(|(_, value)| *value)
}

fn modules(reader: &Reader<'_>, key: &str) -> Result<Option<TargetModules>, FormatError> {
    Ok(match reader.value(key) {
        None => None,
        Some(Value::String(text)) if text == "all-linear" => Some(TargetModules::AllLinear),
        Some(Value::String(pattern)) => {
            check_pattern(pattern, reader.path)?;
            Some(TargetModules::Pattern(pattern.clone()))
        }
        Some(Value::Array(list)) => {
            let names = list
                .iter()
                .map(|name| name.as_str().map(str::to_string))
                .collect::<Option<Vec<String>>>()
                .ok_or_else(|| reader.wrong(key, "a list of names", "something else in it"))?;
            Some(TargetModules::Names(names))
        }
        Some(other) => {
            return Err(reader.wrong(key, "a list of names or an expression", other.to_string()));
        }
    })
}

/// Python's expressions have what Rust's have not (look-around); those are
/// refused rather than matched otherwise.
fn check_pattern(pattern: &str, path: &Path) -> Result<(), FormatError> {
    match Regex::new(&format!("^(?:{pattern})$")) {
        Ok(_) => Ok(()),
        Err(_) => {
            Err(FormatError::unsupported(path, format!("the expression {pattern:?}"), "list the modules by name"))
        }
    }
}

/// Some initialisations take a part of the base weights away, so the adapter
/// is only right over a base that was changed with it.
fn check_init(init: &Value, path: &Path) -> Result<(), FormatError> {
    let fine = match init {
        Value::Null | Value::Bool(_) => true,
        Value::String(name) => {
            matches!(name.as_str(), "gaussian" | "eva" | "orthogonal")
        }
        _ => false,
    };
    if fine {
        return Ok(());
    }
    Err(FormatError::unsupported(
        path,
        format!("init_lora_weights = {init}"),
        "it changes the base weights: convert the adapter to plain LoRA with PEFT first",
    ))
}

/// Whether `modules_to_save` names the value head. For `SEQ_CLS` PEFT adds both
/// names that transformers gives to classifiers, `classifier` and `score`; the
/// decoders that are trained here have a `score` alone.
fn has_value_head(object: &Map<String, Value>, path: &Path) -> Result<bool, FormatError> {
    let Some(value) = object.get("modules_to_save").filter(|value| !idle(value)) else { return Ok(false) };
    let names: Option<Vec<&str>> = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
    match names {
        Some(names) if names.iter().all(|name| [SCORE, "classifier"].contains(name)) => Ok(names.contains(&SCORE)),
        _ => Err(FormatError::unsupported(
            path,
            format!("modules_to_save = {value}"),
            "only the value head `score` of a reward model is read beside the adapters",
        )),
    }
}

/// None, false or empty: as good as not there.
fn idle(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn refuse_unsupported(object: &Map<String, Value>, path: &Path) -> Result<(), FormatError> {
    for (key, value) in object {
        if KNOWN.contains(&key.as_str()) || idle(value) {
            continue;
        }
        let what = if REFUSED.contains(&key.as_str()) {
            format!("{key} = {value}")
        } else {
            format!("the unknown setting {key} = {value}")
        };
        return Err(FormatError::unsupported(
            path,
            what,
            "it changes what the adapter computes: use an adapter without it",
        ));
    }
    Ok(())
}
