//! A whole model as a Hugging Face folder: what a full fine-tune leaves.

use crate::durable::{DirectoryWriter, Manifest};
use crate::error::FormatError;
use crate::safetensors::{ElementType, TensorSink, TensorSpec, write_safetensors_to};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Where transformers begins another file.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Writes a model folder that transformers loads: `config.json`, the weights
/// (in several files with an index beyond 5 GB) and the tokenizer's files.
///
/// The folder appears whole or not at all, and replaces one that is there.
/// `config` is [`ModelConfig::raw`](crate::ModelConfig), `extra_files` those of
/// [`TokenizerSource`](crate::TokenizerSource). The tensors are stored as
/// their specs say; `fill` is called once for each, so that only one need be in
/// memory.
pub fn write_model_folder(
    folder: &Path,
    config: &Value,
    extra_files: &[(String, Vec<u8>)],
    tensors: &[TensorSpec],
    fill: impl FnMut(&TensorSpec, &mut TensorSink<'_>) -> Result<(), FormatError>,
) -> Result<Manifest, FormatError> {
    write_sharded(folder, config, extra_files, tensors, SHARD_BYTES, fill)
}

/// [`write_model_folder`] with another limit for one file of weights.
pub fn write_sharded(
    folder: &Path,
    config: &Value,
    extra_files: &[(String, Vec<u8>)],
    tensors: &[TensorSpec],
    shard_bytes: u64,
    mut fill: impl FnMut(&TensorSpec, &mut TensorSink<'_>) -> Result<(), FormatError>,
) -> Result<Manifest, FormatError> {
    let mut writer = DirectoryWriter::create(folder)?;
    let shards = shards(tensors, shard_bytes);
    let count = shards.len();
    let mut map = Map::new();
    let mut total = 0u64;
    for (number, shard) in shards.iter().enumerate() {
        let name = if count == 1 {
            "model.safetensors".to_string()
        } else {
            format!("model-{:05}-of-{count:05}.safetensors", number + 1)
        };
        for spec in *shard {
            map.insert(spec.name.clone(), json!(name));
            total += spec.bytes().unwrap_or(0);
        }
        let mut file = writer.file(&name)?;
        let path = file.path().to_path_buf();
        write_safetensors_to(&mut file, &path, shard, &mut fill)?;
        file.close()?;
    }
    if count > 1 {
        map.sort_keys();
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        writer.add("model.safetensors.index.json", pretty(&index).as_bytes())?;
    }
    writer.add("config.json", pretty(&with_type(config, tensors)).as_bytes())?;
    for (name, bytes) in extra_files {
        writer.add(name, bytes)?;
    }
    writer.finish_bare()
}

/// Cuts the list if a file would grow beyond the limit. A tensor that is
/// larger than the limit has a file of its own.
fn shards(tensors: &[TensorSpec], limit: u64) -> Vec<&[TensorSpec]> {
    let mut shards = Vec::new();
    let mut first = 0;
    let mut bytes = 0u64;
    for (at, spec) in tensors.iter().enumerate() {
        let more = spec.bytes().unwrap_or(u64::MAX);
        if at > first && bytes.saturating_add(more) > limit {
            shards.push(&tensors[first..at]);
            first = at;
            bytes = 0;
        }
        bytes = bytes.saturating_add(more);
    }
    shards.push(&tensors[first..]);
    shards
}

/// The config with the element type that most bytes are stored in.
fn with_type(config: &Value, tensors: &[TensorSpec]) -> Value {
    let mut config = config.clone();
    let bytes_in = |element: ElementType| -> u64 {
        tensors.iter().filter(|spec| spec.element == element).filter_map(TensorSpec::bytes).sum()
    };
    let name = [(ElementType::F32, "float32"), (ElementType::BF16, "bfloat16"), (ElementType::F16, "float16")]
        .into_iter()
        .max_by_key(|(element, _)| bytes_in(*element))
        .map(|(_, name)| name);
    if let (Some(object), Some(name)) = (config.as_object_mut(), name) {
        // `dtype` is transformers 5, `torch_dtype` is 4; an old key that is
        // there would win in 4 and be wrong.
        if object.contains_key("torch_dtype") {
            object.insert("torch_dtype".into(), json!(name));
        }
        object.insert("dtype".into(), json!(name));
    }
    config
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
