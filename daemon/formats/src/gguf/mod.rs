//! GGUF: llama.cpp's one-file models, read without llama.cpp.
//!
//! # Source
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>

mod config;
mod container;
mod dequantize;
mod names;
mod source;
mod tokenizer;

pub(crate) use config::read_config;
pub(crate) use container::GgufFile;
pub(crate) use source::GgufSource;
pub(crate) use tokenizer::read_tokenizer;
