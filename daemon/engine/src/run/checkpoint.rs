//! Checkpoints: all that a run needs to go on as if it had never stopped,
//! written aside, synced, renamed, and verified before they are believed.
//!
//! `checkpoints/step-00000037/` holds `weights.safetensors` (what is trained),
//! `optimizer.safetensors`, `state.json` and a manifest with the SHA-256 of
//! each. There is no generator state and no data cursor: both are functions of
//! the step.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use finetuned_formats::durable::{self, DirectoryWriter};
use finetuned_formats::{ElementType, TensorSpec, Values, open_safetensors, write_safetensors_to};
use finetuned_plugin_api::program::StateBuffer;
use finetuned_shaders::{Device, Weight};
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::model::decoder::Decoder;
use crate::plugins::used::UsedPlugin;
use crate::train::step::Trainer;
use crate::vocabulary::Tally;

/// The numbers of a run that are not weights.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: usize,
    /// What they add up to.
    #[serde(flatten)]
    pub tally: Tally,
    pub last_validation: Option<f64>,
    /// Step and loss of the best validation so far.
    pub best: Option<(usize, f64)>,
    /// What those three validations measured beside the loss, by name (token
    /// accuracy, preference accuracy, …).
    #[serde(default)]
    pub metrics_before: Vec<(String, f64)>,
    #[serde(default)]
    pub last_metrics: Vec<(String, f64)>,
    #[serde(default)]
    pub best_metrics: Vec<(String, f64)>,
    /// Validations since the best.
    pub without_gain: usize,
    /// The loss plugin's state.
    #[serde(default)]
    pub loss_state: Vec<u8>,
}

/// The folder of a run's checkpoints.
pub fn folder(out: &Path) -> PathBuf {
    out.join("checkpoints")
}

const STEP_PREFIX: &str = "step-";
const BEST: &str = "best";

/// Writes a checkpoint and removes those beyond the newest `keep`. Its manifest
/// names the plugins that made it.
///
/// # Errors
/// A full disk, among others; the earlier checkpoints stay.
pub fn save(
    out: &Path,
    trainer: &Trainer,
    progress: &Progress,
    plugins: &[UsedPlugin],
    keep: usize,
) -> Result<(), EngineError> {
    let name = format!("{STEP_PREFIX}{:08}", progress.step);
    let target = folder(out).join(name);
    let mut writer = DirectoryWriter::create(&target)?;
    write_weights(&mut writer, &trainer.ops, &trainer.model)?;
    write_states(&mut writer, trainer)?;
    let state = serde_json::to_vec_pretty(progress).map_err(EngineError::json("a checkpoint"))?;
    writer.add("state.json", &state)?;
    // A damaged checkpoint of this step may lie there from before a resume.
    let plugins = serde_json::to_value(plugins).map_err(EngineError::json("plugins"))?;
    writer.finish_replacing(serde_json::Map::from_iter([("plugins".to_string(), plugins)]))?;
    for old in list(out).into_iter().rev().skip(keep) {
        remove(&old.1);
    }
    Ok(())
}

/// Keeps the weights of the best validation.
pub fn save_best(out: &Path, ops: &Device, model: &Decoder) -> Result<(), EngineError> {
    let mut writer = DirectoryWriter::create(&folder(out).join(BEST))?;
    write_weights(&mut writer, ops, model)?;
    writer.finish_replacing(Default::default())?;
    Ok(())
}

/// Puts the best weights into the model; false if there are none.
pub fn load_best(out: &Path, ops: &Device, model: &mut Decoder) -> Result<bool, EngineError> {
    let folder = folder(out).join(BEST);
    if !folder.is_dir() {
        return Ok(false);
    }
    durable::verify_directory(&folder)?;
    read_weights(&folder, ops, model)?;
    Ok(true)
}

/// Restores the newest checkpoint that verifies. Returns its progress, and what
/// was wrong with newer ones.
///
/// # Errors
/// A checkpoint that verifies but does not fit the run.
pub fn resume(out: &Path, trainer: &mut Trainer) -> Result<(Option<Progress>, Vec<String>), EngineError> {
    let mut notes = Vec::new();
    for (_, folder) in list(out).into_iter().rev() {
        match durable::verify_directory(&folder) {
            Ok(_) => {
                let progress = read_progress(&folder)?;
                let ops = trainer.ops.clone();
                read_weights(&folder, &ops, &mut trainer.model)?;
                read_states(&folder, trainer)?;
                trainer.restore_loss(&progress.loss_state)?;
                return Ok((Some(progress), notes));
            }
            Err(error) => {
                notes.push(format!("checkpoint {} is not usable ({error}); an older one is taken", folder.display()))
            }
        }
    }
    Ok((None, notes))
}

/// Removes everything of an earlier run's checkpoints.
pub fn clear(out: &Path) {
    remove(&folder(out));
}

/// Checkpoints by step, oldest first.
fn list(out: &Path) -> Vec<(usize, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(folder(out)) else { return Vec::new() };
    let mut found: Vec<(usize, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let step = name.to_str()?.strip_prefix(STEP_PREFIX)?.parse().ok()?;
            Some((step, entry.path()))
        })
        .collect();
    found.sort();
    found
}

fn remove(folder: &Path) {
    // What cannot be removed is only disk space; the next run tries again.
    let _ = std::fs::remove_dir_all(folder);
}

fn read_progress(folder: &Path) -> Result<Progress, EngineError> {
    let path = folder.join("state.json");
    let text = std::fs::read(&path).map_err(EngineError::io(&path))?;
    serde_json::from_slice(&text).map_err(|e| EngineError::Damaged { path, reason: e.to_string() })
}

fn write_weights(writer: &mut DirectoryWriter, ops: &Device, model: &Decoder) -> Result<(), EngineError> {
    let ids: BTreeMap<String, _> =
        model.parameters.trainable().into_iter().map(|id| (model.parameters.get(id).name.clone(), id)).collect();
    let specs: Vec<TensorSpec> = ids
        .iter()
        .map(|(name, id)| TensorSpec::new(name.clone(), &model.parameters.get(*id).shape, ElementType::F32))
        .collect();
    let mut failure = None;
    let mut file = writer.file("weights.safetensors")?;
    let path = file.path().to_path_buf();
    write_safetensors_to(&mut file, &path, &specs, |spec, sink| {
        let values = ids
            .get(&spec.name)
            .ok_or_else(|| EngineError::NoParameter { name: spec.name.clone() })
            .and_then(|id| Ok(ops.read(model.parameters.tensor(*id)?)?));
        match values {
            Ok(values) => sink.write(Values::F32(&values)),
            // The sink then finds the tensor short and fails; the cause is kept.
            Err(error) => {
                failure = Some(error);
                Ok(())
            }
        }
    })
    .map_err(|e| failure.unwrap_or_else(|| e.into()))?;
    file.close()?;
    Ok(())
}

fn read_weights(folder: &Path, ops: &Device, model: &mut Decoder) -> Result<(), EngineError> {
    let file = open_safetensors(&folder.join("weights.safetensors"))?;
    for id in model.parameters.trainable() {
        let parameter = model.parameters.get_mut(id);
        if file.shape(&parameter.name) != Some(&parameter.shape[..]) {
            return Err(EngineError::OtherCheckpoint {
                path: file.path().to_path_buf(),
                reason: format!(
                    "it holds {} as {:?}, this run has {:?}",
                    parameter.name,
                    file.shape(&parameter.name),
                    parameter.shape
                ),
            });
        }
        let values = file.read_f32(&parameter.name)?;
        if let Weight::Dense(tensor) = &mut parameter.value {
            ops.write(tensor, &values)?;
        }
    }
    Ok(())
}

fn write_states(writer: &mut DirectoryWriter, trainer: &Trainer) -> Result<(), EngineError> {
    let states: BTreeMap<String, StateBuffer> =
        trainer.rules.export(&trainer.ops, &trainer.model)?.into_iter().collect();
    let mut specs = Vec::new();
    for (name, buffer) in &states {
        match buffer {
            StateBuffer::F32(values) => specs.push(TensorSpec::new(name.clone(), &[values.len()], ElementType::F32)),
            StateBuffer::BlockwiseU8 { codes, scales, signed } => {
                let kind = if *signed { "signed" } else { "unsigned" };
                specs.push(TensorSpec::new(format!("{name}.{kind}.codes"), &[codes.len()], ElementType::U8));
                specs.push(TensorSpec::new(format!("{name}.{kind}.scales"), &[scales.len()], ElementType::F32));
            }
        }
    }
    let mut file = writer.file("optimizer.safetensors")?;
    let path = file.path().to_path_buf();
    write_safetensors_to(&mut file, &path, &specs, |spec, sink| {
        let whole = states.get(&spec.name);
        let part = |suffix: &str| {
            let base = spec.name.strip_suffix(suffix)?;
            states.get(base.strip_suffix(".signed").or_else(|| base.strip_suffix(".unsigned"))?)
        };
        match (whole, part(".codes"), part(".scales")) {
            (Some(StateBuffer::F32(values)), ..) => sink.write(Values::F32(values)),
            (_, Some(StateBuffer::BlockwiseU8 { codes, .. }), _) => sink.write(Values::U8(codes)),
            (_, _, Some(StateBuffer::BlockwiseU8 { scales, .. })) => sink.write(Values::F32(scales)),
            _ => Ok(()),
        }
    })?;
    file.close()?;
    Ok(())
}

fn read_states(folder: &Path, trainer: &mut Trainer) -> Result<(), EngineError> {
    let file = open_safetensors(&folder.join("optimizer.safetensors"))?;
    let ops = trainer.ops.clone();
    let take = |name: &str| {
        if file.shape(name).is_some() {
            return Ok(Some(StateBuffer::F32(file.read_f32(name)?)));
        }
        for (kind, signed) in [("signed", true), ("unsigned", false)] {
            let codes = format!("{name}.{kind}.codes");
            if file.shape(&codes).is_some() {
                let codes = file.read_bytes(&codes, &[ElementType::U8])?;
                let scales = file.read_f32(&format!("{name}.{kind}.scales"))?;
                return Ok(Some(StateBuffer::BlockwiseU8 { codes, scales, signed }));
            }
        }
        Ok(None)
    };
    trainer.rules.import(&ops, &trainer.model, take)
}
