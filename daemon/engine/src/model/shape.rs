//! A model's sizes from its configuration alone: what plans and benchmarks
//! count, before any weight is read.

use finetuned_formats::{Architecture, ModelConfig};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearShape {
    /// Module path, as [`super::linear::Linear::module`].
    pub module: String,
    pub inputs: usize,
    pub outputs: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelShape {
    pub architecture: Architecture,
    pub layers: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub vocab: usize,
    pub heads: usize,
    /// Width of all queries.
    pub query: usize,
    /// Width of all keys, and of all values.
    pub key_value: usize,
    pub gated: bool,
    pub qk_norm: bool,
    /// Norms after attention and MLP (Gemma).
    pub post_norms: bool,
    /// The blocks' linear layers, in order.
    pub linears: Vec<LinearShape>,
    /// Embeddings, an untied head, norms and biases.
    pub other_parameters: u64,
}

impl ModelShape {
    pub fn of(config: &ModelConfig) -> ModelShape {
        let (c, f, d) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let (q, kv) = (config.heads * d, config.kv_heads * d);
        let architecture = config.architecture;
        let gemma = matches!(architecture, Architecture::Gemma2 | Architecture::Gemma3);
        let gpt2 = architecture == Architecture::Gpt2;
        let parts: Vec<(&str, usize, usize)> = match architecture {
            Architecture::Gpt2 => {
                vec![("attn.c_attn", c, 3 * c), ("attn.c_proj", c, c), ("mlp.c_fc", c, f), ("mlp.c_proj", f, c)]
            }
            Architecture::Phi3 => vec![
                ("self_attn.qkv_proj", c, q + 2 * kv),
                ("self_attn.o_proj", q, c),
                ("mlp.gate_up_proj", c, 2 * f),
                ("mlp.down_proj", f, c),
            ],
            _ => vec![
                ("self_attn.q_proj", c, q),
                ("self_attn.k_proj", c, kv),
                ("self_attn.v_proj", c, kv),
                ("self_attn.o_proj", q, c),
                ("mlp.gate_proj", c, f),
                ("mlp.up_proj", c, f),
                ("mlp.down_proj", f, c),
            ],
        };
        let at = if gpt2 { "transformer.h" } else { "model.layers" };
        let linears: Vec<LinearShape> = (0..config.layers)
            .flat_map(|i| {
                parts.iter().map(move |(name, inputs, outputs)| LinearShape {
                    module: format!("{at}.{i}.{name}"),
                    inputs: *inputs,
                    outputs: *outputs,
                })
            })
            .collect();
        let norms = if gemma { 4 } else { 2 } * c * if gpt2 { 2 } else { 1 };
        let head_norms = if config.qk_norm { 2 * d } else { 0 };
        let mut biases = 0;
        if config.attention_bias {
            biases += q + 2 * kv;
        }
        if config.output_bias {
            biases += c;
        }
        if config.mlp_bias {
            biases += if gpt2 { f + c } else { 2 * f + c };
        }
        let embeddings = config.vocab_size * c * if config.tied_embeddings { 1 } else { 2 };
        let positions = if gpt2 { config.max_positions * c } else { 0 };
        let final_norm = c * if gpt2 { 2 } else { 1 };
        let other = embeddings + positions + final_norm + config.layers * (norms + head_norms + biases);
        ModelShape {
            architecture,
            layers: config.layers,
            hidden: c,
            intermediate: f,
            vocab: config.vocab_size,
            heads: config.heads,
            query: q,
            key_value: kv,
            gated: !gpt2,
            qk_norm: config.qk_norm,
            post_norms: gemma,
            linears,
            other_parameters: other as u64,
        }
    }
}
