//! What a decoder needs to know of a model, resolved: every default filled in.

mod hugging_face;
mod reader;
mod rope;

pub(crate) use reader::Reader;
pub use rope::{Rope, RopeScaling};

use crate::error::FormatError;
use crate::families::{Family, Positions};
use std::path::Path;

/// The nonlinearity of the feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x)
    Silu,
    /// The tanh approximation of GELU (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// GELU by the error function.
    Gelu,
}

impl Activation {
    pub(crate) fn from_name(name: &str) -> Option<Activation> {
        Some(match name {
            "silu" | "swish" => Activation::Silu,
            // gelu_fast is the same polynomial with its constant rounded.
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
            "gelu" | "gelu_python" => Activation::Gelu,
            _ => return None,
        })
    }
}

/// A decoder, described by data.
///
/// Sizes are in elements. Built from `config.json` ([`ModelConfig::from_json`])
/// or from GGUF metadata.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub family: &'static Family,
    /// Rows of the embedding matrix, which may exceed the tokenizer's tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Added to the variance under the norm's square root.
    pub norm_epsilon: f32,
    /// Of the feed-forward block.
    pub activation: Activation,
    /// The longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// Rotary embedding; of the global layers if there are two kinds. Unused by gpt2.
    pub rope: Rope,
    /// Rope base of the sliding layers (gemma3); they are never scaled.
    pub local_rope_theta: Option<f64>,
    /// Tokens that a sliding layer sees, its own included.
    pub sliding_window: Option<usize>,
    /// Which layers slide, one entry a layer.
    pub layer_is_sliding: Vec<bool>,
    /// Which layers rotate q and k, one entry a layer (smollm3; false everywhere for gpt2).
    pub layer_uses_rope: Vec<bool>,
    /// The LM head is the embedding matrix.
    pub tied_embeddings: bool,
    /// q, k and v have biases.
    pub attention_bias: bool,
    /// The attention's output projection has a bias.
    pub output_bias: bool,
    /// The feed-forward matrices have biases.
    pub mlp_bias: bool,
    /// gemma2: scores become cap · tanh(score / cap).
    pub attention_softcap: Option<f32>,
    /// gemma2: logits become cap · tanh(logit / cap).
    pub final_softcap: Option<f32>,
    /// What q·k is multiplied by: 1/√head_dim, or gemma's query_pre_attn_scalar^-½.
    pub query_scale: f32,
    /// First token of a sequence, if the model has one.
    pub bos_token: Option<u32>,
    /// Tokens that end a sequence.
    pub eos_tokens: Vec<u32>,
    /// Padding.
    pub pad_token: Option<u32>,
    /// The `config.json` itself, or one made from GGUF metadata that
    /// transformers loads; a full fine-tune saves it.
    pub raw: serde_json::Value,
}

impl ModelConfig {
    /// Reads a `config.json`, in the layout of transformers 4 or 5.
    ///
    /// # Errors
    /// An unsupported `model_type` names those that are supported; an
    /// unsupported rope scaling or quantisation is named; sizes that cannot be
    /// are refused. `path` is only for the messages.
    pub fn from_json(raw: serde_json::Value, path: &Path) -> Result<ModelConfig, FormatError> {
        hugging_face::parse(raw, path)
    }

    /// Checks what every decoder relies on, so that no later arithmetic on
    /// sizes can divide by zero, overflow or go out of step.
    pub(crate) fn check(&self, path: &Path) -> Result<(), FormatError> {
        // Far above any real model and far below where products of three
        // sizes overflow a 64-bit word.
        const LARGEST: usize = 1 << 21;
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, LARGEST),
            ("num_hidden_layers", self.layers, 1 << 12),
            ("num_attention_heads", self.heads, 1 << 16),
            ("num_key_value_heads", self.kv_heads, 1 << 16),
            ("head_dim", self.head_dim, 1 << 16),
            ("intermediate_size", self.intermediate_size, LARGEST << 2),
            ("max_position_embeddings", self.max_positions, 1 << 40),
        ];
        for (key, value, largest) in sizes {
            if value == 0 || value > largest {
                return Err(FormatError::setting(path, key, format!("1 to {largest}"), value.to_string()));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(FormatError::setting(
                path,
                "num_key_value_heads",
                format!("a divisor of num_attention_heads ({})", self.heads),
                self.kv_heads.to_string(),
            ));
        }
        let rotary = self.rope.rotary_dim;
        if matches!(self.family.config.positions, Positions::Rotary { .. })
            && (rotary == 0 || !rotary.is_multiple_of(2) || rotary > self.head_dim)
        {
            return Err(FormatError::setting(
                path,
                "partial_rotary_factor",
                format!("an even rotary width up to head_dim ({})", self.head_dim),
                rotary.to_string(),
            ));
        }
        if !(self.norm_epsilon.is_finite() && self.norm_epsilon > 0.0) {
            return Err(FormatError::setting(path, "rms_norm_eps", "a positive number", self.norm_epsilon.to_string()));
        }
        if !(self.query_scale.is_finite() && self.query_scale > 0.0) {
            return Err(FormatError::setting(
                path,
                "query_pre_attn_scalar",
                "a positive number",
                self.query_scale.to_string(),
            ));
        }
        for (key, list) in [("no_rope_layers", &self.layer_uses_rope), ("layer_types", &self.layer_is_sliding)] {
            if list.len() != self.layers {
                return Err(FormatError::setting(
                    path,
                    key,
                    format!("{} entries, one a layer", self.layers),
                    format!("{} entries", list.len()),
                ));
            }
        }
        if self.layer_is_sliding.contains(&true) && self.sliding_window.is_none_or(|w| w == 0) {
            return Err(FormatError::setting(
                path,
                "sliding_window",
                "a window of at least one token, as layer_types has sliding layers",
                format!("{:?}", self.sliding_window),
            ));
        }
        Ok(())
    }
}
