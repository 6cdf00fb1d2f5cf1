//! A Hugging Face checkpoint folder's weights as a [`TensorSource`].

use super::file::{SafetensorsFile, open_safetensors};
use super::header::ElementType;
use crate::config::ModelConfig;
use crate::error::FormatError;
use crate::files;
use crate::tensors::{StoredType, TensorInfo, TensorSource, canonical_name};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

#[derive(Debug)]
struct Place {
    shard: usize,
    stored_name: String,
    info: TensorInfo,
}

/// A file and, where an index says so, the only tensors of it that count.
type Shard = (SafetensorsFile, Option<Vec<String>>);

/// All shards of a checkpoint, under canonical names.
#[derive(Debug)]
pub(crate) struct SafetensorsSource {
    folder: PathBuf,
    shards: Vec<SafetensorsFile>,
    places: BTreeMap<String, Place>,
}

impl SafetensorsSource {
    pub(crate) fn open(folder: &Path, config: &ModelConfig) -> Result<SafetensorsSource, FormatError> {
        let index = folder.join(INDEX);
        let single = folder.join(SINGLE);
        let shards = if single.is_file() {
            vec![(open_safetensors(&single)?, None)]
        } else if index.is_file() {
            open_shards(folder, &index)?
        } else {
            vec![(open_safetensors(&only_file(folder)?)?, None)]
        };

        let mut source = SafetensorsSource {
            folder: folder.to_path_buf(),
            shards: Vec::with_capacity(shards.len()),
            places: BTreeMap::new(),
        };
        for (shard, listed) in shards {
            let names: Vec<String> = match listed {
                Some(names) => names,
                None => shard.names().map(str::to_string).collect(),
            };
            for stored_name in names {
                source.place(&shard, stored_name, config)?;
            }
            source.shards.push(shard);
        }
        Ok(source)
    }

    /// Registers one tensor of the shard that is about to be pushed.
    fn place(&mut self, shard: &SafetensorsFile, stored_name: String, config: &ModelConfig) -> Result<(), FormatError> {
        let Some(name) = canonical_name(config.family, &stored_name) else {
            return Ok(());
        };
        if config.tied_embeddings && name == "lm_head.weight" {
            return Ok(());
        }
        let stored = match shard.element(&stored_name) {
            Some(ElementType::F32) => StoredType::F32,
            Some(ElementType::F16) => StoredType::F16,
            Some(ElementType::BF16) => StoredType::BF16,
            _ => {
                return Err(FormatError::unsupported(
                    shard.path(),
                    format!(
                        "tensor {stored_name:?} in {}",
                        shard.element_name(&stored_name).unwrap_or("an unknown type")
                    ),
                    "weights are read from F32, F16 and BF16",
                ));
            }
        };
        let place = Place {
            shard: self.shards.len(),
            info: TensorInfo { shape: shard.shape(&stored_name).unwrap_or_default().to_vec(), stored },
            stored_name,
        };
        let path = shard.path();
        if let Some(other) = self.places.insert(name.clone(), place) {
            return Err(FormatError::damaged(
                path,
                format!("tensor {name:?} is in the checkpoint twice (also as {:?})", other.stored_name),
            ));
        }
        Ok(())
    }

    /// The weight files, in order.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.shards.iter().map(|s| s.path().to_path_buf()).collect()
    }

    fn find(&self, name: &str) -> Result<&Place, FormatError> {
        self.places
            .get(name)
            .ok_or_else(|| FormatError::NoSuchTensor { path: self.folder.clone(), name: name.to_string() })
    }
}

/// Opens the shards that an index names, and checks that each holds what the
/// index says.
fn open_shards(folder: &Path, index: &Path) -> Result<Vec<Shard>, FormatError> {
    let json = files::read_json(index)?;
    let map = json
        .get("weight_map")
        .and_then(|map| map.as_object())
        .ok_or_else(|| FormatError::damaged(index, "it has no weight_map"))?;
    let mut by_file: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (tensor, file) in map {
        let file = file.as_str().unwrap_or_default();
        // A name that leaves the folder would read a stranger's file.
        let plain = Path::new(file).file_name().is_some_and(|name| name == std::ffi::OsStr::new(file));
        if !plain {
            return Err(FormatError::damaged(
                index,
                format!("tensor {tensor:?} is said to be in {file:?}, which is no file name"),
            ));
        }
        by_file.entry(file).or_default().push(tensor.clone());
    }
    if by_file.is_empty() {
        return Err(FormatError::damaged(index, "its weight_map is empty"));
    }
    let mut shards = Vec::with_capacity(by_file.len());
    for (file, tensors) in by_file {
        let path = folder.join(file);
        if !path.is_file() {
            return Err(FormatError::missing(
                &path,
                "this part of the checkpoint",
                format!("{INDEX} names it: fetch the model again"),
            ));
        }
        let shard = open_safetensors(&path)?;
        for tensor in &tensors {
            if shard.shape(tensor).is_none() {
                return Err(FormatError::damaged(
                    &path,
                    format!("{INDEX} says that it holds tensor {tensor:?}, and it does not"),
                ));
            }
        }
        shards.push((shard, Some(tensors)));
    }
    Ok(shards)
}

/// Some checkpoints name their one file otherwise.
fn only_file(folder: &Path) -> Result<PathBuf, FormatError> {
    let mut found = Vec::new();
    let mut pickled = false;
    let entries = std::fs::read_dir(folder).map_err(|e| FormatError::io("read", folder, e))?;
    for entry in entries {
        let path = entry.map_err(|e| FormatError::io("read", folder, e))?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") if !path.ends_with("adapter_model.safetensors") => found.push(path),
            Some("bin" | "pt" | "pth") => pickled = true,
            _ => {}
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(FormatError::missing(
            folder,
            SINGLE,
            if pickled {
                "PyTorch pickles can run code and are not read: convert the checkpoint to safetensors"
            } else {
                "a model folder holds config.json and model.safetensors"
            },
        )),
        _ => Err(FormatError::missing(
            folder,
            INDEX,
            "several safetensors files need an index that says which tensor is where",
        )),
    }
}

impl TensorSource for SafetensorsSource {
    fn names(&self) -> Vec<String> {
        self.places.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        Some(self.places.get(name)?.info.clone())
    }

    fn read_f32_into(&self, name: &str, out: &mut [f32]) -> Result<(), FormatError> {
        let place = self.find(name)?;
        self.shards[place.shard].read_f32_into(&place.stored_name, out)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        let place = self.find(name)?;
        self.shards[place.shard].read_f32(&place.stored_name)
    }
}
