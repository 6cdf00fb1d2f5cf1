//! Shapes that can be measured without a checkpoint.

use std::path::Path;

use finetuned_formats::ModelConfig;

use crate::error::EngineError;

/// Shapes that can be measured without a checkpoint, as config.json says them.
pub const SHAPES: &[(&str, &str)] = &[
    (
        "smollm2-135m",
        r#"{"model_type":"llama","vocab_size":49152,"hidden_size":576,"num_hidden_layers":30,"num_attention_heads":9,
        "num_key_value_heads":3,"intermediate_size":1536,"max_position_embeddings":8192,"rms_norm_eps":1e-5,
        "rope_theta":100000.0,"tie_word_embeddings":true}"#,
    ),
    (
        "smollm2-360m",
        r#"{"model_type":"llama","vocab_size":49152,"hidden_size":960,"num_hidden_layers":32,"num_attention_heads":15,
        "num_key_value_heads":5,"intermediate_size":2560,"max_position_embeddings":8192,"rms_norm_eps":1e-5,
        "rope_theta":100000.0,"tie_word_embeddings":true}"#,
    ),
    (
        "qwen2.5-0.5b",
        r#"{"model_type":"qwen2","vocab_size":151936,"hidden_size":896,"num_hidden_layers":24,"num_attention_heads":14,
        "num_key_value_heads":2,"intermediate_size":4864,"max_position_embeddings":32768,"rms_norm_eps":1e-6,
        "rope_theta":1000000.0,"tie_word_embeddings":true}"#,
    ),
    (
        "llama-3.2-1b",
        r#"{"model_type":"llama","vocab_size":128256,"hidden_size":2048,"num_hidden_layers":16,
        "num_attention_heads":32,"num_key_value_heads":8,"head_dim":64,"intermediate_size":8192,
        "max_position_embeddings":131072,"rms_norm_eps":1e-5,"rope_theta":500000.0,"tie_word_embeddings":true}"#,
    ),
    (
        "llama-3.1-8b",
        r#"{"model_type":"llama","vocab_size":128256,"hidden_size":4096,"num_hidden_layers":32,
        "num_attention_heads":32,"num_key_value_heads":8,"intermediate_size":14336,"max_position_embeddings":131072,
        "rms_norm_eps":1e-5,"rope_theta":500000.0,"tie_word_embeddings":false}"#,
    ),
];

/// The configuration of a named shape.
///
/// # Errors
/// An unknown name.
pub fn shape_config(name: &str) -> Result<ModelConfig, EngineError> {
    let known = || SHAPES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let (_, text) = SHAPES
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| EngineError::UnknownShape { name: name.to_string(), known: known() })?;
    let raw = serde_json::from_str(text).map_err(EngineError::json("a shape"))?;
    Ok(ModelConfig::from_json(raw, Path::new(name))?)
}
