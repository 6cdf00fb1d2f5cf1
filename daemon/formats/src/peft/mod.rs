//! LoRA adapters as PEFT saves them: `adapter_config.json` and
//! `adapter_model.safetensors`.
//!
//! # Source
//! PEFT 0.21, `tuners/lora/config.py`, `utils/save_and_load.py`.

mod adapter;
mod config;

pub use adapter::{PeftAdapter, VALUE_HEAD, read_peft, write_peft};
pub use config::{LayerPattern, PeftConfig, TargetModules};

/// The two files of an adapter folder.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The weights of an adapter folder.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
