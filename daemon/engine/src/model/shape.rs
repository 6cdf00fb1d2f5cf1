//! A model's sizes from its configuration alone: what plans and benchmarks
//! count, before any weight is read.

use finetuned_formats::ModelConfig;
use finetuned_formats::families::{MlpInput, NormKind, Projection, QkNormOver};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearShape {
    /// Module path, as [`super::linear::Linear::module`].
    pub module: String,
    pub inputs: usize,
    pub outputs: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelShape {
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
    /// Queries, keys and values are one product.
    pub fused: bool,
    /// Linear layers are stored `[in, out]`.
    pub transposed: bool,
    pub qk_norm: bool,
    /// There are norms after attention and MLP.
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
        let family = &config.architecture.family().parts;
        let mut parts: Vec<(&str, usize, usize)> = match family.projection {
            Projection::Split { query, key, value } => vec![(query, c, q), (key, c, kv), (value, c, kv)],
            Projection::Fused(name) => vec![(name, c, q + 2 * kv)],
        };
        parts.push((family.attention_output, q, c));
        match family.mlp_input {
            MlpInput::Gated { gate, up } => parts.extend([(gate, c, f), (up, c, f)]),
            MlpInput::FusedGated(name) => parts.push((name, c, 2 * f)),
            MlpInput::Plain(name) => parts.push((name, c, f)),
        }
        parts.push((family.mlp_output, f, c));
        let gated = !matches!(family.mlp_input, MlpInput::Plain(_));
        let at = family.layers;
        let linears: Vec<LinearShape> = (0..config.layers)
            .flat_map(|i| {
                parts.iter().map(move |(name, inputs, outputs)| LinearShape {
                    module: format!("{at}.{i}.{name}"),
                    inputs: *inputs,
                    outputs: *outputs,
                })
            })
            .collect();
        let per_norm = match family.norm {
            NormKind::Rms { .. } => c,
            NormKind::Layer => 2 * c,
        };
        let norms = family.stream_norms() * per_norm;
        let head_norms = match family.qk_norm.map(|norm| norm.over) {
            None => 0,
            Some(QkNormOver::Head) => 2 * d,
            Some(QkNormOver::Token) => q + kv,
        };
        let mut biases = 0;
        if config.attention_bias {
            biases += q + 2 * kv;
        }
        if config.output_bias {
            biases += c;
        }
        if config.mlp_bias {
            biases += if gated { 2 * f + c } else { f + c };
        }
        let embeddings = config.vocab_size * c * if config.tied_embeddings { 1 } else { 2 };
        let positions = if family.position_embedding.is_some() { config.max_positions * c } else { 0 };
        let other = embeddings + positions + per_norm + config.layers * (norms + head_norms + biases);
        ModelShape {
            layers: config.layers,
            hidden: c,
            intermediate: f,
            vocab: config.vocab_size,
            heads: config.heads,
            query: q,
            key_value: kv,
            gated,
            fused: matches!(family.projection, Projection::Fused(_)),
            transposed: family.transposed,
            qk_norm: config.qk_norm,
            post_norms: family.post_attention.is_some(),
            linears,
            other_parameters: other as u64,
        }
    }
}
