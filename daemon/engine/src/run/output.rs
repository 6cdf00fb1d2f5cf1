//! The finished run's files: written aside, read back, compared, and only then
//! put in their place.

use std::path::Path;

use finetuned_formats::{ElementType, ModelFiles, TensorSpec, Values, read_peft, write_model_folder, write_peft};
use finetuned_shaders::{Device, Tensor, Weight};

use crate::base;
use crate::error::EngineError;
use crate::model::adapter;
use crate::model::batch::TokenBatch;
use crate::model::build::{LoadOptions, load, transposed};
use crate::model::context::Pass;
use crate::model::decoder::Decoder;
use crate::model::value;

/// Logits, and a reward model's value, may differ by this much of the largest
/// between the weights in memory and the files read back; they are the same
/// numbers in f32.
const ALLOWED: f64 = 1e-5;

/// Tokens on which the comparison runs.
const PROBE_TOKENS: usize = 48;

const ASIDE: &str = ".tmp-output";

/// Writes the adapter into `out` in PEFT's format. Returns the largest
/// difference of logits after reading it back.
///
/// # Errors
/// [`EngineError::ReloadDiffers`], and what the disk says.
pub fn save_adapter(
    ops: &Device,
    mut model: Decoder,
    base: &Path,
    out: &Path,
    probe: &[u32],
) -> Result<f64, EngineError> {
    let peft = adapter::extract(ops, &model, &base::name(base))?;
    let aside = no_folder(out)?;
    write_peft(&aside, &peft)?;
    let before = probe_logits(ops, &model, probe)?;
    adapter::detach(&mut model);
    adapter::attach_peft(ops, &mut model, &read_peft(&aside)?)?;
    let difference = compare(&before, &probe_logits(ops, &model, probe)?)?;
    install(&aside, out)?;
    Ok(difference)
}

/// Writes a complete Hugging Face folder into `out`. The model is dropped
/// before the files are read back, so that only one is in memory.
///
/// # Errors
/// As [`save_adapter`].
pub fn save_model(
    ops: &Device,
    model: Decoder,
    files: &ModelFiles,
    out: &Path,
    probe: &[u32],
) -> Result<f64, EngineError> {
    let aside = no_folder(out)?;
    let mut config = files.config.raw.clone();
    if let Some(map) = config.as_object_mut() {
        // What is written is f32, whatever the base was stored in.
        map.remove("torch_dtype");
        map.remove("quantization_config");
        map.insert("dtype".into(), "float32".into());
        if model.value_head.is_some() {
            // One label: what transformers needs to know to load `score`.
            map.insert("architectures".into(), [model.config.family.reward_class_name].as_slice().into());
            map.insert("id2label".into(), serde_json::json!({ "0": "LABEL_0" }));
            map.insert("label2id".into(), serde_json::json!({ "LABEL_0": 0 }));
        }
    }
    let mut failure = None;
    let specs: Vec<TensorSpec> = model
        .parameters
        .iter()
        .map(|(_, p)| {
            let shape: Vec<usize> =
                if p.transposed_on_disk { p.shape.iter().rev().copied().collect() } else { p.shape.clone() };
            TensorSpec::new(p.name.clone(), &shape, ElementType::F32)
        })
        .collect();
    let values = |name: &str| -> Result<Vec<f32>, EngineError> {
        let found = model.parameters.iter().find(|(_, p)| p.name == name);
        let (_, parameter) = found.ok_or_else(|| EngineError::NoParameter { name: name.to_string() })?;
        let values = match &parameter.value {
            Weight::Dense(tensor) => ops.read(tensor),
            nf4 => ops.read_weight(nf4),
        }?;
        match parameter.shape[..] {
            [rows, columns] if parameter.transposed_on_disk => Ok(transposed(&values, rows, columns)),
            _ => Ok(values),
        }
    };
    write_model_folder(&aside, &config, &files.tokenizer.extra_files, &specs, |spec, sink| {
        match values(&spec.name) {
            Ok(values) => sink.write(Values::F32(&values)),
            // The sink then finds the tensor short and fails; the cause is kept.
            Err(error) => {
                failure = Some(error);
                Ok(())
            }
        }
    })
    .map_err(|e| failure.unwrap_or_else(|| e.into()))?;
    let before = probe_logits(ops, &model, probe)?;
    let context = model.context;
    drop(model);
    let written = ModelFiles::open(&aside)?;
    let options = LoadOptions { trainable: false, nf4: None, context };
    let mut again = load(ops, &written.config, written.tensors.as_ref(), &options)?;
    if let Some(head) = value::stored(&written.config, written.tensors.as_ref())? {
        again.attach_value_head(ops, value::WEIGHT, &head)?;
    }
    let difference = compare(&before, &probe_logits(ops, &again, probe)?)?;
    drop((written, again));
    install(&aside, out)?;
    Ok(difference)
}

/// The probe's logits, and its value if there is a head for it.
fn probe_logits(ops: &Device, model: &Decoder, probe: &[u32]) -> Result<Vec<f32>, EngineError> {
    let tokens = &probe[..probe.len().min(PROBE_TOKENS)];
    let batch = TokenBatch::from_documents([tokens]);
    let rows: Vec<u32> = (0..tokens.len() as u32).collect();
    let logits: Tensor = model.logits(ops, &batch, &rows, &Pass::evaluation(true))?;
    let mut numbers = ops.read(&logits)?;
    numbers.extend(model.values(ops, &batch, &Pass::evaluation(true))?.into_iter().flatten());
    Ok(numbers)
}

fn compare(a: &[f32], b: &[f32]) -> Result<f64, EngineError> {
    let largest = a.iter().map(|x| f64::from(x.abs())).fold(1.0, f64::max);
    let difference = a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    let allowed = ALLOWED * largest;
    // Written so that a NaN fails.
    if a.len() == b.len() && difference <= allowed && a.iter().chain(b).all(|x| x.is_finite()) {
        Ok(difference)
    } else {
        Err(EngineError::ReloadDiffers { difference, allowed })
    }
}

/// The place to write aside, empty of what an interrupted run left there.
fn no_folder(out: &Path) -> Result<std::path::PathBuf, EngineError> {
    let aside = out.join(ASIDE);
    if aside.exists() {
        std::fs::remove_dir_all(&aside).map_err(EngineError::io(&aside))?;
    }
    Ok(aside)
}

/// Moves every file to its place; each rename is atomic, and the run is called
/// finished only after the last.
fn install(aside: &Path, out: &Path) -> Result<(), EngineError> {
    let fail = EngineError::io(out);
    for entry in std::fs::read_dir(aside).map_err(&fail)? {
        let entry = entry.map_err(&fail)?;
        std::fs::rename(entry.path(), out.join(entry.file_name())).map_err(&fail)?;
    }
    std::fs::remove_dir(aside).map_err(&fail)?;
    // The names are only safe once the folder itself is.
    std::fs::File::open(out).and_then(|folder| folder.sync_all()).map_err(&fail)?;
    Ok(())
}
