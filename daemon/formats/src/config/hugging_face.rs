//! `config.json` of transformers 4 and 5 → [`ModelConfig`].
//!
//! The defaults are those of transformers' configuration classes: a key that
//! is absent means the class's default, which differs from model to model.
//!
//! # Source
//! transformers 5.23, `models/*/configuration_*.py` and `modeling_*.py`.

use super::reader::Reader;
use super::rope::{self, Rope, RopeScaling};
use super::{Activation, ModelConfig};
use crate::error::FormatError;
use crate::families::{Bias, Family, OutputBias, Positions, QueryScale, RotaryLayers, Width, WindowPattern, Windows};
use serde_json::{Map, Value, json};
use std::path::Path;

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
    let family = Family::of_model_type(&model_type)
        .ok_or_else(|| FormatError::UnsupportedModel { path: path.to_path_buf(), model_type: model_type.clone() })?;
    let raw = if family.wrapper == Some(model_type.as_str()) { text_half(family, raw, path)? } else { raw };
    refuse_quantised(&raw, path)?;
    let config = decoder(family, &raw, path)?;
    config.check(path)?;
    Ok(ModelConfig { raw: Value::Object(raw), ..config })
}

/// A multimodal model wraps its text model's config in `text_config`. The text half
/// alone is a model of the family, which is what a fine-tune is saved as.
fn text_half(family: &Family, mut raw: Map<String, Value>, path: &Path) -> Result<Map<String, Value>, FormatError> {
    let mut text = match raw.remove("text_config") {
        Some(Value::Object(text)) => text,
        Some(other) => {
            return Err(FormatError::setting(path, "text_config", "an object", other.to_string()));
        }
        // Text-only checkpoints carry the same keys at the top.
        None => raw.clone(),
    };
    text.insert("model_type".into(), json!(family.model_type));
    text.insert("architectures".into(), json!([family.class_name]));
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

/// The value of the first of these keys that is there.
fn first_size(reader: &Reader<'_>, keys: &[&str], default: usize) -> Result<usize, FormatError> {
    for key in keys {
        if let Some(size) = reader.size(key)? {
            return Ok(size);
        }
    }
    Ok(default)
}

/// What an error calls a key that has several names.
fn name_of(keys: &[&'static str]) -> &'static str {
    keys.first().copied().unwrap_or_default()
}

fn bias(reader: &Reader<'_>, bias: Bias) -> Result<bool, FormatError> {
    match bias {
        Bias::Always => Ok(true),
        Bias::Never => Ok(false),
        Bias::Key(key) => reader.flag_or(key, false),
    }
}

fn decoder(family: &'static Family, raw: &Map<String, Value>, path: &Path) -> Result<ModelConfig, FormatError> {
    let reader = Reader::new(raw, path);
    let facts = &family.config;
    let (keys, defaults) = (&facts.keys, &facts.defaults);
    for (flag, advice) in facts.refused {
        if reader.flag_or(flag, false)? {
            return Err(FormatError::unsupported(path, *flag, *advice));
        }
    }
    let hidden_size = first_size(&reader, keys.hidden_size, defaults.hidden_size)?;
    let layers = first_size(&reader, keys.layers, defaults.layers)?;
    // Bounded before any list of this length is made.
    if layers > 1 << 12 {
        return Err(reader.wrong(name_of(keys.layers), "at most 4096", layers.to_string()));
    }
    let heads = first_size(&reader, keys.heads, defaults.heads)?;
    let kv_heads = match (keys.kv_heads, defaults.kv_heads) {
        (None, _) => heads,
        (Some(key), Some(default)) if !reader.has(key) => default,
        // A null means "as many as query heads" in every class.
        (Some(key), _) => reader.size_or(key, heads)?,
    };
    let own = keys.head_dim.map(|key| reader.size(key)).transpose()?.flatten();
    let head_dim = match own.or(defaults.head_dim) {
        Some(head_dim) => head_dim,
        None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            return Err(reader.wrong(
                name_of(keys.heads),
                format!("a divisor of {} ({hidden_size})", name_of(keys.hidden_size)),
                heads.to_string(),
            ));
        }
    };
    let intermediate_size = match defaults.intermediate_size {
        Width::Fixed(width) => width,
        Width::TimesHidden(times) => hidden_size.saturating_mul(times),
    };
    let max_positions = first_size(&reader, keys.max_positions, defaults.max_positions)?;
    let name = reader.text(keys.activation)?.unwrap_or(defaults.activation);
    let activation = activation(&reader, keys.activation, name)?;
    let (rope, local_rope_theta) = rope_of(family, &reader, head_dim, max_positions)?;
    let layer_uses_rope = layers_with_rope(family, &reader, layers)?;
    let (sliding_window, layer_is_sliding) = sliding(family, &reader, layers, &layer_uses_rope)?;
    let attention_bias = bias(&reader, facts.attention_bias)?;
    let output_bias = match facts.output_bias {
        OutputBias::AsAttention => attention_bias,
        OutputBias::Never => false,
    };
    let softcap = |key: &str, default: Option<f64>| -> Result<Option<f32>, FormatError> {
        let cap = if reader.has(key) { reader.number(key)? } else { default };
        match cap {
            Some(cap) if !(cap.is_finite() && cap > 0.0) => {
                Err(reader.wrong(key, "a positive number", cap.to_string()))
            }
            cap => Ok(cap.map(|cap| cap as f32)),
        }
    };
    let (attention_softcap, final_softcap) = match facts.softcaps {
        Some(caps) => {
            (softcap("attn_logit_softcapping", caps.attention)?, softcap("final_logit_softcapping", caps.logits)?)
        }
        None => (None, None),
    };
    let of_a_head = (head_dim as f64).powf(-0.5) as f32;
    let query_scale = match facts.query_scale {
        QueryScale::Head => of_a_head,
        QueryScale::Scalar { key, default } => reader.number_or(key, default)?.powf(-0.5) as f32,
        QueryScale::Flag(key) => {
            if reader.flag_or(key, true)? {
                of_a_head
            } else {
                1.0
            }
        }
    };

    Ok(ModelConfig {
        family,
        vocab_size: reader.size_or("vocab_size", defaults.vocab_size)?,
        hidden_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate_size: reader.size_or(keys.intermediate_size, intermediate_size)?,
        norm_epsilon: reader.number_or(keys.epsilon, defaults.epsilon)? as f32,
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
        mlp_bias: bias(&reader, facts.mlp_bias)?,
        attention_softcap,
        final_softcap,
        query_scale,
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
    family: &Family,
    reader: &Reader<'_>,
    head_dim: usize,
    max_positions: usize,
) -> Result<(Rope, Option<f64>), FormatError> {
    let default_theta = family.config.defaults.theta;
    let (partial, local_theta) = match family.config.positions {
        Positions::Rotary { partial, local_theta, .. } => (partial, local_theta),
        Positions::Learned => {
            return Ok((Rope { theta: default_theta, rotary_dim: head_dim, scaling: RopeScaling::None }, None));
        }
    };
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
        None => reader.number_or("rope_theta", default_theta)?,
    };
    if !(theta.is_finite() && theta > 0.0) {
        return Err(reader.wrong("rope_theta", "a positive number", theta.to_string()));
    }
    let rotary_dim = if partial {
        let fraction = match within("partial_rotary_factor")? {
            Some(fraction) => fraction,
            None => reader.number_or("partial_rotary_factor", 1.0)?,
        };
        (head_dim as f64 * fraction) as usize
    } else {
        head_dim
    };
    let rope = Rope { theta, rotary_dim, scaling: rope::scaling(global, key, max_positions, reader)? };

    let local = match (local_theta, nested) {
        (Some(default), Some(nested)) => {
            let outer = Reader::within(nested, reader.path, "rope_parameters");
            let sliding = outer.object("sliding_attention")?;
            let key = "rope_parameters.sliding_attention";
            if rope::scaling(sliding, key, max_positions, reader)? != RopeScaling::None {
                return Err(FormatError::unsupported(
                    reader.path,
                    "rope scaling of the sliding layers",
                    "no checkpoint of the family has it",
                ));
            }
            let theta = match sliding {
                Some(sliding) => Reader::within(sliding, reader.path, key).number("rope_theta")?,
                None => None,
            };
            match theta {
                Some(theta) => Some(theta),
                None => Some(reader.number_or("rope_local_base_freq", default)?),
            }
        }
        (Some(default), None) => Some(reader.number_or("rope_local_base_freq", default)?),
        (None, _) => None,
    };
    if let Some(theta) = local
        && !(theta.is_finite() && theta > 0.0)
    {
        return Err(reader.wrong("rope_local_base_freq", "a positive number", theta.to_string()));
    }
    Ok((rope, local))
}

fn layers_with_rope(family: &Family, reader: &Reader<'_>, layers: usize) -> Result<Vec<bool>, FormatError> {
    let default = match family.config.positions {
        Positions::Learned => return Ok(vec![false; layers]),
        Positions::Rotary { layers: RotaryLayers::All, .. } => return Ok(vec![true; layers]),
        Positions::Rotary { layers: RotaryLayers::Listed { interval }, .. } => interval,
    };
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
    let interval = reader.size_or("no_rope_layer_interval", default)?;
    if interval == 0 {
        return Err(reader.wrong("no_rope_layer_interval", "at least 1", "0"));
    }
    Ok((1..=layers).map(|n| !n.is_multiple_of(interval)).collect())
}

/// The window and the layers that have it.
fn sliding(
    family: &Family,
    reader: &Reader<'_>,
    layers: usize,
    uses_rope: &[bool],
) -> Result<(Option<usize>, Vec<bool>), FormatError> {
    let stored = |default: Option<usize>| {
        if reader.has("sliding_window") { reader.size("sliding_window") } else { Ok(default) }
    };
    let (window, pattern) = match family.config.windows {
        Windows::None => return Ok((None, vec![false; layers])),
        Windows::EveryLayer(default) => {
            // Every layer or none; these classes do not read layer_types.
            let window = stored(default)?;
            return Ok((window, vec![window.is_some(); layers]));
        }
        Windows::Listed { default, flagged, pattern } => {
            let window = stored(default)?;
            let used = !flagged || reader.flag_or("use_sliding_window", false)?;
            (window.filter(|_| used), pattern)
        }
    };
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
    let slides = match pattern {
        WindowPattern::Alternating => (0..layers).map(|layer| layer % 2 == 0).collect(),
        WindowPattern::AllButEvery(default) => {
            let pattern = match reader.size("sliding_window_pattern")? {
                Some(pattern) => pattern,
                None => reader.size_or("_sliding_window_pattern", default)?,
            };
            if pattern == 0 {
                return Err(reader.wrong("sliding_window_pattern", "at least 1", "0"));
            }
            (1..=layers).map(|n| !n.is_multiple_of(pattern)).collect()
        }
        WindowPattern::WithoutRope => uses_rope.iter().map(|rope| window.is_some() && !rope).collect(),
        WindowPattern::From(default) => {
            let first = reader.size_or("max_window_layers", default)?;
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
