//! Model files: Hugging Face folders, GGUF, PEFT adapters, and durable writing.
//!
//! [`ModelFiles::open`] is the entry: it gives a decoder's description
//! ([`ModelConfig`]), its weights one tensor at a time ([`TensorSource`]) and
//! what a tokenizer is made from ([`TokenizerSource`]), the same from either
//! format. [`read_peft`] and [`write_peft`] are adapters; [`write_model_folder`]
//! is a whole fine-tuned model; [`durable`] is how all of it reaches the disk.
//!
//! Every file is read with distrust: a cut-off or hostile one is an error that
//! names it, never a panic or an allocation that the file could not fill.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod config;
pub mod durable;
mod error;
pub mod families;
mod files;
mod folder;
mod gguf;
mod model;
mod peft;
mod safetensors;
mod tensors;
mod tokenizer;

pub use config::{Activation, ModelConfig, Rope, RopeScaling};
pub use error::FormatError;
pub use families::{FAMILIES, Family, supported_model_types};
pub use folder::{write_model_folder, write_sharded};
pub use model::{ModelFiles, ModelKind};
pub use peft::{
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, LayerPattern, PeftAdapter, PeftConfig, TargetModules, VALUE_HEAD, read_peft,
    write_peft,
};
pub use safetensors::{
    ElementType, NamedTensors, SafetensorsFile, TensorSink, TensorSpec, Values, open_safetensors, read_safetensors_f32,
    write_safetensors, write_safetensors_to,
};
pub use tensors::{RandomTensor, StoredType, TensorInfo, TensorSource};
pub use tokenizer::TokenizerSource;

// Both formats are little-endian, and tensors are read by casting.
const _: () = assert!(cfg!(target_endian = "little"), "a little-endian machine");
