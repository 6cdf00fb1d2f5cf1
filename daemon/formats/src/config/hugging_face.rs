//! `config.json` of transformers 4 and 5 → [`ModelConfig`].
//!
//! The defaults are those of transformers' configuration classes: a key that
//! is absent means the class's default, which differs from model to model.
//!
//! # Source
//! transformers 5.23, `models/*/configuration_*.py` and `modeling_*.py`.

use super::reader::Reader;
use super::rope::{self, Rope, RopeScaling};
use super::{Activation, Architecture, ModelConfig};
use crate::error::FormatError;
use serde_json::{Map, Value, json};
use std::path::Path;

/// One model class's defaults.
struct Defaults {
    vocab_size: usize,
    hidden_size: usize,
    layers: usize,
    heads: usize,
    /// `None`: as many as query heads.
    kv_heads: Option<usize>,
    /// `None`: hidden_size / heads.
    head_dim: Option<usize>,
    intermediate_size: usize,
    epsilon: f64,
    max_positions: usize,
    theta: f64,
    tied: bool,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
}

fn defaults(architecture: Architecture) -> Defaults {
    let llama = Defaults {
        vocab_size: 32000,
        hidden_size: 4096,
        layers: 32,
        heads: 32,
        kv_heads: None,
        head_dim: None,
        intermediate_size: 11008,
        epsilon: 1e-6,
        max_positions: 2048,
        theta: 10_000.0,
        tied: false,
        bos: Some(1),
        eos: Some(2),
        pad: None,
    };
    match architecture {
        Architecture::Llama => llama,
        Architecture::Mistral => {
            Defaults { kv_heads: Some(8), intermediate_size: 14336, max_positions: 131_072, ..llama }
        }
        Architecture::Qwen2 => Defaults {
            vocab_size: 151_936,
            kv_heads: Some(32),
            intermediate_size: 22016,
            max_positions: 32768,
            bos: None,
            eos: None,
            ..llama
        },
        Architecture::Qwen3 => Defaults {
            vocab_size: 151_936,
            kv_heads: Some(32),
            head_dim: Some(128),
            intermediate_size: 22016,
            max_positions: 32768,
            bos: None,
            eos: None,
            ..llama
        },
        Architecture::Gemma2 => Defaults {
            vocab_size: 256_000,
            hidden_size: 2304,
            layers: 26,
            heads: 8,
            kv_heads: Some(4),
            head_dim: Some(256),
            intermediate_size: 9216,
            max_positions: 8192,
            tied: true,
            bos: Some(2),
            eos: Some(1),
            pad: Some(0),
            ..llama
        },
        Architecture::Gemma3 => Defaults {
            vocab_size: 262_208,
            hidden_size: 2304,
            layers: 26,
            heads: 8,
            kv_heads: Some(4),
            head_dim: Some(256),
            intermediate_size: 9216,
            max_positions: 131_072,
            theta: 1_000_000.0,
            tied: true,
            bos: Some(2),
            eos: Some(1),
            pad: Some(0),
            ..llama
        },
        Architecture::Phi3 => Defaults {
            vocab_size: 32064,
            hidden_size: 3072,
            intermediate_size: 8192,
            epsilon: 1e-5,
            max_positions: 4096,
            eos: Some(32000),
            pad: Some(32000),
            ..llama
        },
        Architecture::SmolLm3 => Defaults {
            vocab_size: 128_256,
            hidden_size: 2048,
            layers: 36,
            heads: 16,
            kv_heads: Some(4),
            max_positions: 32768,
            theta: 2_000_000.0,
            tied: true,
            bos: Some(128_000),
            eos: Some(128_001),
            pad: Some(128_004),
            ..llama
        },
        Architecture::Gpt2 => Defaults {
            vocab_size: 50257,
            hidden_size: 768,
            layers: 12,
            heads: 12,
            intermediate_size: 3072,
            epsilon: 1e-5,
            max_positions: 1024,
            tied: true,
            bos: Some(50256),
            eos: Some(50256),
            ..llama
        },
    }
}

pub(super) fn parse(raw: Value, path: &Path) -> Result<ModelConfig, FormatError> {
    let raw = match raw {
        Value::Object(map) => map,
        other => {
            return Err(FormatError::damaged(path, format!("a JSON object is expected, it holds {}", kind_of(&other))));
        }
    };
    refuse_quantised(&raw, path)?;
    let model_type = Reader::new(&raw, path)
        .text("model_type")?
        .ok_or_else(|| FormatError::missing(path, "model_type", "this is no transformers model configuration"))?
        .to_string();
    let architecture = Architecture::from_model_type(&model_type)
        .ok_or_else(|| FormatError::UnsupportedModel { path: path.to_path_buf(), model_type: model_type.clone() })?;
    let raw = match model_type.as_str() {
        "gemma3" => text_half(raw, path)?,
        _ => raw,
    };
    refuse_quantised(&raw, path)?;
    let config = match architecture {
        Architecture::Gpt2 => gpt2(&raw, path)?,
        _ => decoder(architecture, &raw, path)?,
    };
    config.check(path)?;
    Ok(ModelConfig { raw: Value::Object(raw), ..config })
}

/// The multimodal gemma3 wraps its text model's config in `text_config`; the
/// text half alone is a `gemma3_text`, which is what a fine-tune is saved as.
fn text_half(mut raw: Map<String, Value>, path: &Path) -> Result<Map<String, Value>, FormatError> {
    let mut text = match raw.remove("text_config") {
        Some(Value::Object(text)) => text,
        Some(other) => {
            return Err(FormatError::setting(path, "text_config", "an object", other.to_string()));
        }
        // Text-only checkpoints carry the same keys at the top.
        None => raw.clone(),
    };
    text.insert("model_type".into(), json!("gemma3_text"));
    text.insert("architectures".into(), json!(["Gemma3ForCausalLM"]));
    for key in ["bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype"] {
        if let Some(value) = raw.get(key)
            && text.get(key).is_none_or(Value::is_null)
        {
            text.insert(key.into(), value.clone());
        }
    }
    Ok(text)
}

fn refuse_quantised(raw: &Map<String, Value>, path: &Path) -> Result<(), FormatError> {
    match raw.get("quantization_config") {
        None | Some(Value::Null) => Ok(()),
        Some(settings) => {
            let method = settings.get("quant_method").and_then(Value::as_str).unwrap_or("an unknown method");
            Err(FormatError::unsupported(
                path,
                format!("a checkpoint quantised with {method}"),
                "use the unquantised checkpoint (method qlora quantises it itself) or a GGUF file",
            ))
        }
    }
}

fn decoder(architecture: Architecture, raw: &Map<String, Value>, path: &Path) -> Result<ModelConfig, FormatError> {
    use Architecture::*;
    let reader = Reader::new(raw, path);
    let defaults = defaults(architecture);
    let hidden_size = reader.size_or("hidden_size", defaults.hidden_size)?;
    let layers = reader.size_or("num_hidden_layers", defaults.layers)?;
    // Bounded before any list of this length is made.
    if layers > 1 << 12 {
        return Err(reader.wrong("num_hidden_layers", "at most 4096", layers.to_string()));
    }
    let heads = reader.size_or("num_attention_heads", defaults.heads)?;
    let kv_heads = match (reader.has("num_key_value_heads"), defaults.kv_heads) {
        // A null means "as many as query heads" in every class.
        (true, _) | (false, None) => reader.size_or("num_key_value_heads", heads)?,
        (false, Some(default)) => default,
    };
    let head_dim = match reader.size("head_dim")?.or(defaults.head_dim) {
        Some(head_dim) => head_dim,
        None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            return Err(reader.wrong(
                "num_attention_heads",
                format!("a divisor of hidden_size ({hidden_size})"),
                heads.to_string(),
            ));
        }
    };
    let max_positions = reader.size_or("max_position_embeddings", defaults.max_positions)?;
    let gemma = matches!(architecture, Gemma2 | Gemma3);

    let activation_key = if gemma { "hidden_activation" } else { "hidden_act" };
    let activation = match reader.text(activation_key)? {
        Some(name) => activation(&reader, activation_key, name)?,
        None if gemma => Activation::GeluTanh,
        None => Activation::Silu,
    };

    let (rope, local_rope_theta) = rope_of(architecture, &reader, &defaults, head_dim, max_positions)?;
    let layer_uses_rope = layers_with_rope(architecture, &reader, layers)?;
    let (sliding_window, layer_is_sliding) = sliding(architecture, &reader, layers, &layer_uses_rope)?;

    if gemma && reader.flag_or("use_bidirectional_attention", false)? {
        return Err(FormatError::unsupported(
            path,
            "use_bidirectional_attention",
            "only causal language models can be trained",
        ));
    }
    let attention_bias = match architecture {
        Qwen2 => true,
        Mistral | Phi3 => false,
        _ => reader.flag_or("attention_bias", false)?,
    };
    let output_bias = attention_bias && architecture != Qwen2;
    let mlp_bias = matches!(architecture, Llama | SmolLm3) && reader.flag_or("mlp_bias", false)?;

    let softcap = |key: &str, default: Option<f64>| -> Result<Option<f32>, FormatError> {
        if !gemma {
            return Ok(None);
        }
        let cap = if reader.has(key) { reader.number(key)? } else { default };
        match cap {
            Some(cap) if !(cap.is_finite() && cap > 0.0) => {
                Err(reader.wrong(key, "a positive number", cap.to_string()))
            }
            cap => Ok(cap.map(|cap| cap as f32)),
        }
    };
    let gemma2 = architecture == Gemma2;
    let attention_softcap = softcap("attn_logit_softcapping", gemma2.then_some(50.0))?;
    let final_softcap = softcap("final_logit_softcapping", gemma2.then_some(30.0))?;
    let query_scale = if gemma {
        reader.number_or("query_pre_attn_scalar", 256.0)?.powf(-0.5) as f32
    } else {
        (head_dim as f64).powf(-0.5) as f32
    };

    Ok(ModelConfig {
        architecture,
        vocab_size: reader.size_or("vocab_size", defaults.vocab_size)?,
        hidden_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate_size: reader.size_or("intermediate_size", defaults.intermediate_size)?,
        norm_epsilon: reader.number_or("rms_norm_eps", defaults.epsilon)? as f32,
        activation,
        max_positions,
        rope,
        local_rope_theta,
        sliding_window,
        layer_is_sliding,
        layer_uses_rope,
        tied_embeddings: reader.flag_or("tie_word_embeddings", defaults.tied)?,
        attention_bias,
        output_bias,
        mlp_bias,
        attention_softcap,
        final_softcap,
        query_scale,
        qk_norm: matches!(architecture, Qwen3 | Gemma3),
        bos_token: token_or(&reader, "bos_token_id", defaults.bos)?,
        eos_tokens: tokens_or(&reader, "eos_token_id", defaults.eos)?,
        pad_token: token_or(&reader, "pad_token_id", defaults.pad)?,
        raw: Value::Null,
    })
}

fn gpt2(raw: &Map<String, Value>, path: &Path) -> Result<ModelConfig, FormatError> {
    let reader = Reader::new(raw, path);
    let defaults = defaults(Architecture::Gpt2);
    // transformers accepts its general names for gpt2's own ones.
    let either = |own: &str, general: &str, default: usize| -> Result<usize, FormatError> {
        match reader.size(own)? {
            Some(size) => Ok(size),
            None => reader.size_or(general, default),
        }
    };
    for flag in ["scale_attn_by_inverse_layer_idx", "add_cross_attention"] {
        if reader.flag_or(flag, false)? {
            return Err(FormatError::unsupported(path, flag, "use a plain GPT-2 checkpoint"));
        }
    }
    let hidden_size = either("n_embd", "hidden_size", defaults.hidden_size)?;
    let layers = either("n_layer", "num_hidden_layers", defaults.layers)?;
    if layers > 1 << 12 {
        return Err(reader.wrong("n_layer", "at most 4096", layers.to_string()));
    }
    let heads = either("n_head", "num_attention_heads", defaults.heads)?;
    if heads == 0 || !hidden_size.is_multiple_of(heads) {
        return Err(reader.wrong("n_head", format!("a divisor of n_embd ({hidden_size})"), heads.to_string()));
    }
    let head_dim = hidden_size / heads;
    let query_scale =
        if reader.flag_or("scale_attn_weights", true)? { (head_dim as f64).powf(-0.5) as f32 } else { 1.0 };
    let activation = match reader.text("activation_function")? {
        Some(name) => activation(&reader, "activation_function", name)?,
        None => Activation::GeluTanh,
    };
    Ok(ModelConfig {
        architecture: Architecture::Gpt2,
        vocab_size: reader.size_or("vocab_size", defaults.vocab_size)?,
        hidden_size,
        layers,
        heads,
        kv_heads: heads,
        head_dim,
        intermediate_size: reader.size_or("n_inner", hidden_size.saturating_mul(4))?,
        norm_epsilon: reader.number_or("layer_norm_epsilon", defaults.epsilon)? as f32,
        activation,
        max_positions: either("n_positions", "max_position_embeddings", defaults.max_positions)?,
        rope: Rope { theta: defaults.theta, rotary_dim: head_dim, scaling: RopeScaling::None },
        local_rope_theta: None,
        sliding_window: None,
        layer_is_sliding: vec![false; layers],
        layer_uses_rope: vec![false; layers],
        tied_embeddings: reader.flag_or("tie_word_embeddings", true)?,
        attention_bias: true,
        output_bias: true,
        mlp_bias: true,
        attention_softcap: None,
        final_softcap: None,
        query_scale,
        qk_norm: false,
        bos_token: token_or(&reader, "bos_token_id", defaults.bos)?,
        eos_tokens: tokens_or(&reader, "eos_token_id", defaults.eos)?,
        pad_token: token_or(&reader, "pad_token_id", defaults.pad)?,
        raw: Value::Null,
    })
}

fn activation(reader: &Reader<'_>, key: &str, name: &str) -> Result<Activation, FormatError> {
    Activation::from_name(name)
        .ok_or_else(|| reader.wrong(key, "silu, gelu, gelu_new or gelu_pytorch_tanh", format!("{name:?}")))
}

/// Rope of the (global) layers and the base of the sliding ones.
fn rope_of(
    architecture: Architecture,
    reader: &Reader<'_>,
    defaults: &Defaults,
    head_dim: usize,
    max_positions: usize,
) -> Result<(Rope, Option<f64>), FormatError> {
    let v5 = reader.object("rope_parameters")?;
    let v4 = reader.object("rope_scaling")?;
    let nested = v5.filter(|rope| rope.contains_key("full_attention") || rope.contains_key("sliding_attention"));

    // The dictionary that describes the global layers. As transformers does, a
    // `rope_scaling` wins over a flat `rope_parameters`.
    let (global, key) = match (nested, v4, v5) {
        (Some(nested), _, _) => {
            let outer = Reader::within(nested, reader.path, "rope_parameters");
            (outer.object("full_attention")?, "rope_parameters.full_attention")
        }
        (None, Some(v4), _) => (Some(v4), "rope_scaling"),
        (None, None, v5) => (v5, "rope_parameters"),
    };
    let within = |key: &str| -> Result<Option<f64>, FormatError> {
        match global {
            Some(global) => Reader::within(global, reader.path, "rope_parameters").number(key),
            None => Ok(None),
        }
    };
    let theta = match within("rope_theta")? {
        Some(theta) => theta,
        None => reader.number_or("rope_theta", defaults.theta)?,
    };
    if !(theta.is_finite() && theta > 0.0) {
        return Err(reader.wrong("rope_theta", "a positive number", theta.to_string()));
    }
    let rotary_dim = if architecture == Architecture::Phi3 {
        let fraction = match within("partial_rotary_factor")? {
            Some(fraction) => fraction,
            None => reader.number_or("partial_rotary_factor", 1.0)?,
        };
        (head_dim as f64 * fraction) as usize
    } else {
        head_dim
    };
    let rope = Rope { theta, rotary_dim, scaling: rope::scaling(global, key, max_positions, reader)? };

    let local = match (architecture, nested) {
        (Architecture::Gemma3, Some(nested)) => {
            let outer = Reader::within(nested, reader.path, "rope_parameters");
            let sliding = outer.object("sliding_attention")?;
            let key = "rope_parameters.sliding_attention";
            if rope::scaling(sliding, key, max_positions, reader)? != RopeScaling::None {
                return Err(FormatError::unsupported(
                    reader.path,
                    "rope scaling of the sliding layers",
                    "no gemma3 checkpoint has it",
                ));
            }
            let theta = match sliding {
                Some(sliding) => Reader::within(sliding, reader.path, key).number("rope_theta")?,
                None => None,
            };
            match theta {
                Some(theta) => Some(theta),
                None => Some(reader.number_or("rope_local_base_freq", 10_000.0)?),
            }
        }
        (Architecture::Gemma3, None) => Some(reader.number_or("rope_local_base_freq", 10_000.0)?),
        _ => None,
    };
    if let Some(theta) = local
        && !(theta.is_finite() && theta > 0.0)
    {
        return Err(reader.wrong("rope_local_base_freq", "a positive number", theta.to_string()));
    }
    Ok((rope, local))
}

fn layers_with_rope(architecture: Architecture, reader: &Reader<'_>, layers: usize) -> Result<Vec<bool>, FormatError> {
    if architecture != Architecture::SmolLm3 {
        return Ok(vec![true; layers]);
    }
    if let Some(list) = reader.list("no_rope_layers")? {
        // The key's name notwithstanding, 1 means that the layer has rope.
        // transformers reads the first `layers` entries of a longer list.
        return list
            .iter()
            .take(layers)
            .map(|value| match value {
                Value::Bool(flag) => Ok(*flag),
                value => match value.as_u64() {
                    Some(0) => Ok(false),
                    Some(1) => Ok(true),
                    _ => Err(reader.wrong("no_rope_layers", "a list of 0 and 1", value.to_string())),
                },
            })
            .collect();
    }
    let interval = reader.size_or("no_rope_layer_interval", 4)?;
    if interval == 0 {
        return Err(reader.wrong("no_rope_layer_interval", "at least 1", "0"));
    }
    Ok((1..=layers).map(|n| !n.is_multiple_of(interval)).collect())
}

/// The window and the layers that have it.
fn sliding(
    architecture: Architecture,
    reader: &Reader<'_>,
    layers: usize,
    uses_rope: &[bool],
) -> Result<(Option<usize>, Vec<bool>), FormatError> {
    use Architecture::*;
    let default = match architecture {
        Llama | Gpt2 => return Ok((None, vec![false; layers])),
        Phi3 | SmolLm3 => None,
        _ => Some(4096),
    };
    let mut window = if reader.has("sliding_window") { reader.size("sliding_window")? } else { default };
    if matches!(architecture, Qwen2 | Qwen3 | SmolLm3) && !reader.flag_or("use_sliding_window", false)? {
        window = None;
    }
    if matches!(architecture, Mistral | Phi3) {
        // Every layer or none; these classes do not read layer_types.
        return Ok((window, vec![window.is_some(); layers]));
    }
    if let Some(list) = reader.list("layer_types")? {
        let slides = list
            .iter()
            .take(layers)
            .map(|value| match value.as_str() {
                Some("sliding_attention") => Ok(true),
                Some("full_attention") => Ok(false),
                _ => Err(reader.wrong("layer_types", "full_attention or sliding_attention", value.to_string())),
            })
            .collect::<Result<Vec<bool>, _>>()?;
        return Ok((window, slides));
    }
    let slides = match architecture {
        Gemma2 => (0..layers).map(|layer| layer % 2 == 0).collect(),
        Gemma3 => {
            let pattern = match reader.size("sliding_window_pattern")? {
                Some(pattern) => pattern,
                None => reader.size_or("_sliding_window_pattern", 6)?,
            };
            if pattern == 0 {
                return Err(reader.wrong("sliding_window_pattern", "at least 1", "0"));
            }
            (1..=layers).map(|n| !n.is_multiple_of(pattern)).collect()
        }
        SmolLm3 => uses_rope.iter().map(|rope| window.is_some() && !rope).collect(),
        _ => {
            let first = reader.size_or("max_window_layers", 28)?;
            (0..layers).map(|layer| window.is_some() && layer >= first).collect()
        }
    };
    Ok((window, slides))
}

/// An absent key takes the class's default; a null means none.
fn token_or(reader: &Reader<'_>, key: &str, default: Option<u32>) -> Result<Option<u32>, FormatError> {
    if reader.has(key) {
        // bos_token_id is a list in a few configs; the first counts.
        Ok(reader.tokens(key)?.first().copied())
    } else {
        Ok(default)
    }
}

fn tokens_or(reader: &Reader<'_>, key: &str, default: Option<u32>) -> Result<Vec<u32>, FormatError> {
    if reader.has(key) { reader.tokens(key) } else { Ok(default.into_iter().collect()) }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
