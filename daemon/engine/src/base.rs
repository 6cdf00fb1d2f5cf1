//! A base model's files with its tokenizer.

use std::path::{Path, PathBuf};

use finetuned_data::ChatTokenizer;
use finetuned_formats::ModelFiles;

use crate::error::EngineError;

/// A base model whose weights are not read yet.
pub struct BaseModel {
    pub files: ModelFiles,
    pub tokenizer: ChatTokenizer,
}

impl BaseModel {
    /// Opens a Hugging Face folder or a GGUF file.
    ///
    /// # Errors
    /// See [`ModelFiles::open`]; a tokenizer that cannot be built.
    pub fn open(path: &Path) -> Result<BaseModel, EngineError> {
        let files = ModelFiles::open(path)?;
        let tokenizer = ChatTokenizer::new(&files.tokenizer)?;
        Ok(BaseModel { files, tokenizer })
    }
}

/// The name by which an adapter's configuration refers to its base model.
pub(crate) fn name(path: &Path) -> String {
    let absolute = std::fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path));
    absolute.display().to_string()
}
