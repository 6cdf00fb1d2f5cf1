//! An adapter's weights and settings together.

use super::config::PeftConfig;
use super::{ADAPTER_CONFIG, ADAPTER_WEIGHTS};
use crate::durable::{self, DirectoryWriter};
use crate::error::FormatError;
use crate::files;
use crate::safetensors::{
    ElementType, NamedTensors, TensorSpec, Values, open_safetensors, write_safetensors, write_safetensors_to,
};
use std::collections::BTreeMap;
use std::path::Path;

/// What PEFT puts before the base model's module paths.
const PREFIX: &str = "base_model.model.";

/// PEFT's key of a reward model's value head `[1, hidden]`, which has no bias.
///
/// # Source
/// PEFT 0.21, `AuxiliaryTrainingWrapper.adapter_state_dict`: a module to save is
/// stored under the name that it has in the base model; transformers 5,
/// `GenericForSequenceClassification.score`.
pub const VALUE_HEAD: &str = "base_model.model.score.weight";

/// A LoRA adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct PeftAdapter {
    /// The settings.
    pub config: PeftConfig,
    /// Shape and elements by PEFT's key:
    /// `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` is
    /// `[rank, in]`, `lora_B.weight` is `[out, rank]`, and DoRA's
    /// `lora_magnitude_vector` is `[out]`. A value head lies under
    /// [`VALUE_HEAD`].
    pub tensors: NamedTensors,
}

/// The parts of one module's adapter.
#[derive(Default)]
struct Parts<'a> {
    a: Option<&'a [usize]>,
    b: Option<&'a [usize]>,
    magnitude: Option<&'a [usize]>,
}

impl PeftAdapter {
    /// PEFT's key of a module's tensor; `part` is `lora_A.weight`,
    /// `lora_B.weight` or `lora_magnitude_vector`.
    pub fn key(module: &str, part: &str) -> String {
        format!("{PREFIX}{module}.{part}")
    }

    /// The modules that have an adapter, as paths in the base model, sorted.
    pub fn modules(&self) -> Vec<&str> {
        self.tensors.keys().filter_map(|key| key.strip_prefix(PREFIX)?.strip_suffix(".lora_A.weight")).collect()
    }

    /// Checks that every module is whole and of the rank that the settings say.
    fn check(&self, path: &Path) -> Result<(), FormatError> {
        let mut modules: BTreeMap<&str, Parts<'_>> = BTreeMap::new();
        for (key, (shape, data)) in &self.tensors {
            if shape.iter().product::<usize>() != data.len() {
                return Err(FormatError::Shape {
                    op: "check",
                    name: key.clone(),
                    expected: format!("{shape:?}"),
                    got: format!("{} elements", data.len()),
                });
            }
            if key == VALUE_HEAD {
                check_value_head(shape, path)?;
                continue;
            }
            let module_and_part = key.strip_prefix(PREFIX).and_then(|rest| {
                rest.strip_suffix(".lora_A.weight")
                    .map(|module| (module, 'a'))
                    .or_else(|| rest.strip_suffix(".lora_B.weight").map(|m| (m, 'b')))
                    .or_else(|| rest.strip_suffix(".lora_magnitude_vector").map(|m| (m, 'm')))
            });
            let Some((module, part)) = module_and_part else {
                return Err(FormatError::unsupported(
                    path,
                    format!("the adapter tensor {key:?}"),
                    "only lora_A, lora_B and lora_magnitude_vector of linear layers are read",
                ));
            };
            let parts = modules.entry(module).or_default();
            match part {
                'a' => parts.a = Some(shape),
                'b' => parts.b = Some(shape),
                _ => parts.magnitude = Some(shape),
            }
        }
        match (self.config.value_head, self.tensors.contains_key(VALUE_HEAD)) {
            (true, false) => {
                return Err(FormatError::damaged(
                    path,
                    format!("modules_to_save names a value head, and {VALUE_HEAD:?} is not there"),
                ));
            }
            (false, true) => {
                return Err(FormatError::damaged(
                    path,
                    format!("it holds {VALUE_HEAD:?}, and modules_to_save does not name `score`"),
                ));
            }
            _ => {}
        }
        if modules.is_empty() {
            return Err(FormatError::damaged(path, "it holds no adapter tensors"));
        }
        for (module, parts) in modules {
            let rank = self.config.rank_of(module);
            let wrong = |what: String| FormatError::damaged(path, format!("the adapter of {module:?} {what}"));
            let (Some(a), Some(b)) = (parts.a, parts.b) else {
                return Err(wrong("lacks lora_A or lora_B".into()));
            };
            if a.len() != 2 || b.len() != 2 || a[0] != rank || b[1] != rank {
                return Err(wrong(format!("has lora_A {a:?} and lora_B {b:?}, and the settings say rank {rank}")));
            }
            match (self.config.dora, parts.magnitude) {
                (false, None) => {}
                (true, Some(magnitude)) if magnitude == [b[0]] => {}
                (true, _) => {
                    return Err(wrong(format!("needs a lora_magnitude_vector of [{}] for use_dora", b[0])));
                }
                (false, Some(_)) => {
                    return Err(wrong("has a lora_magnitude_vector, and use_dora is false".into()));
                }
            }
        }
        Ok(())
    }

    /// The `adapter_config.json`, byte for byte as PEFT writes it.
    fn config_text(&self) -> String {
        format!("{:#}", self.config.to_json())
    }

    /// Writes the two files of the adapter into a folder being written.
    pub fn write_into(&self, folder: &mut DirectoryWriter) -> Result<(), FormatError> {
        self.check(folder.path())?;
        folder.add(ADAPTER_CONFIG, self.config_text().as_bytes())?;
        let specs: Vec<TensorSpec> =
            self.tensors.iter().map(|(name, (shape, _))| TensorSpec::new(name, shape, ElementType::F32)).collect();
        let mut file = folder.file(ADAPTER_WEIGHTS)?;
        let path = file.path().to_path_buf();
        write_safetensors_to(&mut file, &path, &specs, |spec, sink| match self.tensors.get(&spec.name) {
            Some((_, data)) => sink.write(Values::F32(data)),
            None => Ok(()),
        })?;
        file.close()
    }
}

/// One reward, not several labels.
fn check_value_head(shape: &[usize], path: &Path) -> Result<(), FormatError> {
    match shape {
        [1, width] if *width > 0 => Ok(()),
        [labels, _] => Err(FormatError::unsupported(
            path,
            format!("a classifier of {labels} labels"),
            "only a value head of one output, a reward model's, is read",
        )),
        _ => Err(FormatError::damaged(path, format!("{VALUE_HEAD:?} has shape {shape:?}, expected [1, hidden]"))),
    }
}

/// Reads an adapter folder as PEFT saves it.
///
/// # Errors
/// Settings that are not implemented, by name; tensors that do not fit the
/// settings; weights in a pickle.
pub fn read_peft(folder: &Path) -> Result<PeftAdapter, FormatError> {
    let config_path = folder.join(ADAPTER_CONFIG);
    if !config_path.is_file() {
        return Err(FormatError::missing(
            folder,
            ADAPTER_CONFIG,
            "an adapter is a folder with adapter_config.json and adapter_model.safetensors",
        ));
    }
    let config = PeftConfig::from_json(&files::read_json(&config_path)?, &config_path)?;
    let path = folder.join(ADAPTER_WEIGHTS);
    if !path.is_file() {
        let pickled = folder.join("adapter_model.bin").is_file();
        return Err(FormatError::missing(
            folder,
            ADAPTER_WEIGHTS,
            if pickled {
                "adapter_model.bin is a pickle, which can run code and is not read: \
                 save the adapter again with PEFT, which writes safetensors"
            } else {
                "an adapter is a folder with adapter_config.json and adapter_model.safetensors"
            },
        ));
    }
    let file = open_safetensors(&path)?;
    let mut tensors = BTreeMap::new();
    for stored in file.names() {
        // PEFT before 0.11 kept the magnitude as a module's weight.
        let name = stored
            .strip_suffix(".lora_magnitude_vector.weight")
            .map(|module| format!("{module}.lora_magnitude_vector"))
            .unwrap_or_else(|| stored.to_string());
        let shape = file.shape(stored).unwrap_or_default().to_vec();
        tensors.insert(name, (shape, file.read_f32(stored)?));
    }
    let adapter = PeftAdapter { config, tensors };
    adapter.check(&path)?;
    Ok(adapter)
}

/// Writes an adapter's two files into a folder, which is made where missing;
/// each file is replaced atomically, the weights first.
///
/// For a folder that appears whole or not at all, use
/// [`PeftAdapter::write_into`].
pub fn write_peft(folder: &Path, adapter: &PeftAdapter) -> Result<(), FormatError> {
    adapter.check(folder)?;
    std::fs::create_dir_all(folder).map_err(|e| FormatError::io("create", folder, e))?;
    let tensors =
        adapter.tensors.iter().map(|(name, (shape, data))| (name.as_str(), shape.as_slice(), data.as_slice()));
    write_safetensors(&folder.join(ADAPTER_WEIGHTS), tensors, ElementType::F32)?;
    durable::write_file(&folder.join(ADAPTER_CONFIG), adapter.config_text().as_bytes())
}
