//! safetensors: one file, or several with an index.
//!
//! # Source
//! <https://github.com/huggingface/safetensors#format>

mod file;
mod header;
mod source;
mod write;

pub use file::{NamedTensors, SafetensorsFile, open_safetensors, read_safetensors_f32};
pub use header::ElementType;
pub(crate) use source::SafetensorsSource;
pub use write::{TensorSink, TensorSpec, Values, write_safetensors, write_safetensors_to};
