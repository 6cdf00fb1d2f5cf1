//! A model on disk, whichever way it is stored.

use crate::config::ModelConfig;
use crate::durable::sha256_file;
use crate::error::FormatError;
use crate::files;
use crate::gguf::{GgufFile, GgufSource, read_config, read_tokenizer};
use crate::safetensors::SafetensorsSource;
use crate::tensors::TensorSource;
use crate::tokenizer::TokenizerSource;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// How a model is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// A folder with config.json, safetensors and a tokenizer.
    HuggingFace,
    /// One GGUF file.
    Gguf,
}

/// An open model: its description is in memory, its weights are read on demand.
pub struct ModelFiles {
    /// What the decoder looks like.
    pub config: ModelConfig,
    /// The weights.
    pub tensors: Box<dyn TensorSource>,
    /// The tokenizer's description.
    pub tokenizer: TokenizerSource,
    /// The folder or file.
    pub origin: PathBuf,
    /// How it is stored.
    pub kind: ModelKind,
    /// What the fingerprint covers, in order.
    files: Vec<PathBuf>,
}

impl std::fmt::Debug for ModelFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelFiles")
            .field("origin", &self.origin)
            .field("kind", &self.kind)
            .field("family", &self.config.family.model_type)
            .finish_non_exhaustive()
    }
}

impl ModelFiles {
    /// Opens a Hugging Face folder, a GGUF file, or a folder whose only model
    /// is one GGUF file.
    ///
    /// # Errors
    /// A missing or damaged file, an unsupported model; the message names the
    /// file and what to do.
    pub fn open(path: &Path) -> Result<ModelFiles, FormatError> {
        if !path.exists() {
            return Err(FormatError::missing(path, "the model", "give a Hugging Face model folder or a .gguf file"));
        }
        if path.is_file() {
            return match path.extension().and_then(|e| e.to_str()) {
                Some("safetensors") => Err(FormatError::unsupported(
                    path,
                    "a safetensors file by itself as a model",
                    "give the folder that also holds config.json and tokenizer.json",
                )),
                _ => open_gguf(path),
            };
        }
        if path.join("config.json").is_file() {
            return open_folder(path);
        }
        let mut gguf = Vec::new();
        let entries = std::fs::read_dir(path).map_err(|e| FormatError::io("read", path, e))?;
        for entry in entries {
            let entry = entry.map_err(|e| FormatError::io("read", path, e))?.path();
            if entry.extension().is_some_and(|e| e == "gguf") {
                gguf.push(entry);
            }
        }
        match gguf.as_slice() {
            [only] => open_gguf(only),
            [] => Err(FormatError::missing(
                path,
                "config.json",
                "a model folder holds config.json, model.safetensors and tokenizer.json",
            )),
            several => Err(FormatError::unsupported(
                path,
                format!("a folder of {} GGUF files as a model", several.len()),
                "give one of the files",
            )),
        }
    }

    /// SHA-256 over the names and contents of the files that the model is made
    /// of: config, weights and tokenizer. Streams every byte, so callers keep
    /// the result.
    pub fn fingerprint(&self) -> Result<String, FormatError> {
        let mut all = Sha256::new();
        for path in &self.files {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            all.update(format!("{} {name}\n", sha256_file(path)?));
        }
        Ok(crate::durable::hex(&all.finalize()))
    }

    /// The files that the model is made of.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

fn open_gguf(path: &Path) -> Result<ModelFiles, FormatError> {
    let file = GgufFile::open(path)?;
    let mut config = read_config(&file)?;
    let tokenizer = read_tokenizer(&file, &config)?;
    if config.eos_tokens.is_empty() {
        config.eos_tokens.clone_from(&tokenizer.eos_ids);
    }
    let tensors = GgufSource::new(file, &config)?;
    check_tensors(&tensors, &config, path)?;
    Ok(ModelFiles {
        config,
        tensors: Box::new(tensors),
        tokenizer,
        origin: path.to_path_buf(),
        kind: ModelKind::Gguf,
        files: vec![path.to_path_buf()],
    })
}

fn open_folder(folder: &Path) -> Result<ModelFiles, FormatError> {
    let config_path = folder.join("config.json");
    let config = ModelConfig::from_json(files::read_json(&config_path)?, &config_path)?;
    let tensors = SafetensorsSource::open(folder, &config)?;
    check_tensors(&tensors, &config, folder)?;
    let tokenizer = TokenizerSource::from_folder(folder, &config)?;
    let mut files = vec![config_path];
    files.extend(tensors.files());
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        let path = folder.join(name);
        if path.is_file() {
            files.push(path);
        }
    }
    Ok(ModelFiles {
        config,
        tensors: Box::new(tensors),
        tokenizer,
        origin: folder.to_path_buf(),
        kind: ModelKind::HuggingFace,
        files,
    })
}

/// Catches early what would be a puzzle later: a config of another model, or
/// weights that are an adapter.
fn check_tensors(tensors: &dyn TensorSource, config: &ModelConfig, path: &Path) -> Result<(), FormatError> {
    let parts = &config.family.parts;
    let mut wanted = vec![parts.embedding];
    if !config.tied_embeddings {
        wanted.push(parts.head);
    }
    let expected = [config.vocab_size, config.hidden_size];
    for name in wanted {
        let info = tensors.info(name).ok_or_else(|| {
            FormatError::missing(
                path,
                format!("the tensor {name:?}"),
                "the weights do not belong to this config.json, or are not a whole model",
            )
        })?;
        if info.shape != expected {
            return Err(FormatError::damaged(
                path,
                format!("tensor {name:?} has shape {:?}, and vocab_size and hidden_size say {expected:?}", info.shape),
            ));
        }
    }
    Ok(())
}
