//! GGUF metadata → a `config.json` that transformers would load → [`ModelConfig`].
//!
//! # Source
//! llama.cpp, `conversion/*.py` (what each architecture's keys come from) and
//! `src/llama-model.cpp` (what is not stored and assumed from the size).

use super::container::{GgufFile, Value as Stored};
use crate::config::{ModelConfig, RopeScaling};
use crate::error::FormatError;
use crate::families::{Bias, FAMILIES, Family, GgufWindow, Positions, QueryScale, Width};
use serde_json::{Map, Value, json};

/// Metadata of one architecture: its keys stand under its name.
struct Keys<'a> {
    file: &'a GgufFile,
    prefix: &'a str,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn size(&self, key: &str) -> Result<Option<u64>, FormatError> {
        self.file.integer(&self.key(key))
    }

    fn size_needed(&self, key: &str) -> Result<u64, FormatError> {
        self.size(key)?.ok_or_else(|| self.absent(key))
    }

    fn float(&self, key: &str) -> Result<Option<f64>, FormatError> {
        Ok(self.file.float(&self.key(key))?.map(shortest))
    }

    fn float_needed(&self, key: &str) -> Result<f64, FormatError> {
        self.float(key)?.ok_or_else(|| self.absent(key))
    }

    fn absent(&self, key: &str) -> FormatError {
        FormatError::missing(
            &self.file.path,
            format!("the metadata {:?}", self.key(key)),
            "convert the model again with a current llama.cpp",
        )
    }
}

/// The double nearest to a float's shortest decimal: 1e-5 rather than
/// 9.999999747378752e-6, which is the same float.
fn shortest(x: f64) -> f64 {
    (x as f32).to_string().parse().unwrap_or(x)
}

pub(crate) fn read_config(file: &GgufFile) -> Result<ModelConfig, FormatError> {
    let name = file.text("general.architecture")?.ok_or_else(|| {
        FormatError::missing(
            &file.path,
            "the metadata \"general.architecture\"",
            "convert the model again with a current llama.cpp",
        )
    })?;
    let family =
        FAMILIES.iter().find(|family| family.gguf.name == name).copied().ok_or_else(|| unsupported(file, name))?;
    let keys = Keys { file, prefix: name };
    if keys.size("expert_count")?.is_some_and(|n| n > 0) {
        return Err(FormatError::unsupported(&file.path, "a mixture of experts", "use a dense model"));
    }
    let mut raw = Map::new();
    raw.insert("architectures".into(), json!([family.class_name]));
    raw.insert("model_type".into(), json!(family.model_type));
    decoder(family, &keys, &mut raw)?;
    for (key, stored) in [
        ("bos_token_id", "tokenizer.ggml.bos_token_id"),
        ("eos_token_id", "tokenizer.ggml.eos_token_id"),
        ("pad_token_id", "tokenizer.ggml.padding_token_id"),
    ] {
        raw.insert(key.into(), json!(file.token(stored)?));
    }
    ModelConfig::from_json(Value::Object(raw), &file.path)
}

fn unsupported(file: &GgufFile, name: &str) -> FormatError {
    FormatError::UnsupportedModel { path: file.path.clone(), model_type: name.to_string() }
}

/// Rows of the embedding matrix.
fn vocab_size(file: &GgufFile) -> Result<usize, FormatError> {
    match file.tensors.get("token_embd.weight") {
        Some(tensor) if tensor.shape.len() == 2 => Ok(tensor.shape[0]),
        _ => Err(FormatError::missing(
            &file.path,
            "the tensor \"token_embd.weight\"",
            "a vocabulary-only GGUF file holds no model",
        )),
    }
}

fn decoder(family: &Family, keys: &Keys<'_>, raw: &mut Map<String, Value>) -> Result<(), FormatError> {
    let file = keys.file;
    let (facts, names) = (&family.gguf, &family.config.keys);
    let mut set = |key: &str, value: Value| raw.insert(key.into(), value);
    let first = |names: &[&'static str]| names.first().copied().unwrap_or_default();
    let hidden = keys.size_needed("embedding_length")?;
    let layers = keys.size_needed("block_count")?;
    let heads = keys.size_needed("attention.head_count")?;
    let positions = keys.size_needed("context_length")?;
    let head_dim = match keys.size("attention.key_length")? {
        Some(head_dim) => head_dim,
        None if heads > 0 => hidden / heads,
        None => 0,
    };
    if let Some(value) = keys.size("attention.value_length")?
        && value != head_dim
    {
        return Err(FormatError::setting(
            &file.path,
            keys.key("attention.value_length"),
            format!("the length of a key ({head_dim})"),
            value.to_string(),
        ));
    }
    let intermediate = match (keys.size("feed_forward_length")?, family.config.defaults.intermediate_size) {
        (Some(width), _) => width,
        (None, Width::TimesHidden(times)) => hidden.saturating_mul(times as u64),
        (None, Width::Fixed(_)) => return Err(keys.absent("feed_forward_length")),
    };
    set("vocab_size", json!(vocab_size(file)?));
    set(first(names.hidden_size), json!(hidden));
    set(names.intermediate_size, json!(intermediate));
    set(first(names.layers), json!(layers));
    set(first(names.heads), json!(heads));
    if let Some(key) = names.kv_heads {
        set(key, json!(keys.size("attention.head_count_kv")?.unwrap_or(heads)));
    }
    if let Some(key) = names.head_dim {
        set(key, json!(head_dim));
    }
    set(first(names.max_positions), json!(positions));
    set(names.epsilon, json!(keys.float_needed(facts.epsilon)?));
    let tied = facts.always_tied || !file.tensors.contains_key("output.weight");
    set("tie_word_embeddings", json!(tied));
    if let Bias::Key(key) = family.config.attention_bias {
        set(key, json!(file.tensors.contains_key("blk.0.attn_q.bias")));
    }
    if let Bias::Key(key) = family.config.mlp_bias {
        set(key, json!(file.tensors.contains_key("blk.0.ffn_up.bias")));
    }
    set(names.activation, json!(family.config.defaults.activation));
    if let Positions::Rotary { partial, local_theta, .. } = family.config.positions {
        rotary(family, keys, raw, head_dim, (partial, local_theta))?;
        if partial {
            let original = keys.size("rope.scaling.original_context_length")?;
            raw.insert("original_max_position_embeddings".into(), json!(original.unwrap_or(positions)));
        }
    }
    if let (QueryScale::Scalar { key, .. }, Some(wide)) = (family.config.query_scale, facts.wide_query_layers) {
        let scalar = if layers == wide { hidden / heads.max(1) } else { head_dim };
        raw.insert(key.into(), json!(scalar));
    }
    if let Some(caps) = family.config.softcaps {
        // A cap that the family does not have by default is null if none is stored.
        let attention = match caps.attention {
            Some(default) => Some(keys.float("attn_logit_softcapping")?.unwrap_or(default)),
            None => None,
        };
        raw.insert("attn_logit_softcapping".into(), json!(attention));
        let logits = keys.float("final_logit_softcapping")?.or(caps.logits);
        raw.insert("final_logit_softcapping".into(), json!(logits));
    }
    if let Some(interval) = facts.no_rope_interval {
        raw.insert("no_rope_layer_interval".into(), json!(interval));
    }
    windows(facts.window, keys, raw, layers)
}

fn rotary(
    family: &Family,
    keys: &Keys<'_>,
    raw: &mut Map<String, Value>,
    head_dim: u64,
    (partial, local_theta): (bool, Option<f64>),
) -> Result<(), FormatError> {
    let rotary = keys.size("rope.dimension_count")?.unwrap_or(head_dim);
    if rotary != head_dim && !partial {
        return Err(FormatError::setting(
            &keys.file.path,
            keys.key("rope.dimension_count"),
            format!("the length of a head ({head_dim})"),
            rotary.to_string(),
        ));
    }
    let theta = keys.float("rope.freq_base")?.unwrap_or(family.gguf.theta);
    let mut rope = scaling(keys, theta, head_dim)?;
    rope.insert("rope_theta".into(), json!(theta));
    if partial {
        rope.insert("partial_rotary_factor".into(), json!(rotary as f64 / head_dim.max(1) as f64));
    }
    let rope = match local_theta {
        None => Value::Object(rope),
        Some(default) => {
            let local = keys.float("rope.freq_base_swa")?.unwrap_or(default);
            json!({
                "full_attention": rope,
                "sliding_attention": {"rope_type": "default", "rope_theta": local},
            })
        }
    };
    raw.insert("rope_parameters".into(), rope);
    Ok(())
}

fn windows(facts: GgufWindow, keys: &Keys<'_>, raw: &mut Map<String, Value>, layers: u64) -> Result<(), FormatError> {
    let stored = keys.size("attention.sliding_window")?;
    let window = match facts {
        GgufWindow::None => return Ok(()),
        GgufWindow::Refused(advice) => {
            let key = keys.key("attention.sliding_window");
            return match stored {
                Some(n) if n > 0 => Err(FormatError::unsupported(&keys.file.path, format!("{key} = {n}"), advice)),
                _ => Ok(()),
            };
        }
        GgufWindow::Off => {
            raw.insert("use_sliding_window".into(), json!(false));
            None
        }
        GgufWindow::Default(default) => Some(stored.unwrap_or(default)),
        GgufWindow::Stored | GgufWindow::Layers(_) => stored.filter(|&n| n > 0),
    };
    raw.insert("sliding_window".into(), json!(window));
    let GgufWindow::Layers(default) = facts else { return Ok(()) };
    let layers = layers.min(1 << 12);
    let pattern_key = keys.key("attention.sliding_window_pattern");
    let slides: Vec<bool> = match keys.file.value(&pattern_key) {
        _ if window.is_none() => vec![false; layers as usize],
        None => (1..=layers).map(|n| !n.is_multiple_of(default)).collect(),
        Some(Stored::Bools(list)) => list.clone(),
        Some(_) => {
            let pattern = keys.size_needed("attention.sliding_window_pattern")?.max(1);
            (1..=layers).map(|n| !n.is_multiple_of(pattern)).collect()
        }
    };
    let types: Vec<&str> =
        slides.iter().map(|slides| if *slides { "sliding_attention" } else { "full_attention" }).collect();
    raw.insert("layer_types".into(), json!(types));
    Ok(())
}

/// The rope dictionary without its base.
fn scaling(keys: &Keys<'_>, theta: f64, head_dim: u64) -> Result<Map<String, Value>, FormatError> {
    let file = keys.file;
    let mut rope = Map::new();
    let longrope = file.tensors.keys().any(|name| name.contains("rope_factors_"));
    if longrope {
        return Err(FormatError::UnsupportedRope { path: file.path.clone(), kind: "longrope".into() });
    }
    let kind = file.text(&keys.key("rope.scaling.type"))?;
    let factor = match keys.float("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.float("rope.scale_linear")?,
    };
    match (kind, factor) {
        (Some("linear") | None, Some(factor)) if factor != 0.0 && factor != 1.0 => {
            rope.insert("rope_type".into(), json!("linear"));
            rope.insert("factor".into(), json!(factor));
        }
        (Some("linear" | "none") | None, _) => {
            rope.insert("rope_type".into(), json!("default"));
        }
        (Some(other), _) => {
            return Err(FormatError::UnsupportedRope { path: file.path.clone(), kind: other.to_string() });
        }
    }
    if let Some(factors) = stored_factors(file)?
        && let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } =
            llama3(file, &factors, theta, head_dim)?
    {
        rope.insert("rope_type".into(), json!("llama3"));
        rope.insert("factor".into(), json!(factor));
        rope.insert("low_freq_factor".into(), json!(low_freq_factor));
        rope.insert("high_freq_factor".into(), json!(high_freq_factor));
        rope.insert("original_max_position_embeddings".into(), json!(original_max_positions));
    }
    Ok(rope)
}

/// `rope_freqs.weight`: what each pair's frequency is divided by.
fn stored_factors(file: &GgufFile) -> Result<Option<Vec<f64>>, FormatError> {
    let Some(tensor) = file.tensors.get("rope_freqs.weight") else {
        return Ok(None);
    };
    if tensor.bytes > 1 << 20 || tensor.stored != crate::StoredType::F32 {
        return Err(FormatError::damaged(&file.path, "its rope_freqs.weight is no short list of f32"));
    }
    let mut bytes = vec![0; tensor.bytes as usize];
    file.read_at(&mut bytes, tensor.start)?;
    let (words, _) = bytes.as_chunks::<4>();
    Ok(Some(words.iter().map(|w| f64::from(f32::from_le_bytes(*w))).collect()))
}

/// Recovers llama3's four numbers from the factors that the converter made of
/// them.
///
/// Between the fast pairs (factor 1) and the slow ones (the largest factor)
/// the interpolation weight is a straight line over 1/wavelength, so two pairs
/// between give it; only the ratios to the original length matter, and 8192
/// is what the converter takes for it.
fn llama3(file: &GgufFile, factors: &[f64], theta: f64, head_dim: u64) -> Result<RopeScaling, FormatError> {
    let pairs = factors.len();
    if pairs as u64 != head_dim / 2 {
        return Err(FormatError::damaged(
            &file.path,
            format!("its rope_freqs.weight has {pairs} factors for heads of {head_dim}"),
        ));
    }
    // Conversions of Llama 1 and 2 carried a table of ones.
    if factors.iter().all(|&f| f == 1.0) {
        return Ok(RopeScaling::None);
    }
    let frequency = |pair: usize| theta.powf(-2.0 * pair as f64 / head_dim as f64);
    let fits = |scaling: &RopeScaling| {
        factors.iter().enumerate().all(|(pair, &stored)| {
            let ours = scaling.divisor(frequency(pair));
            (ours - stored).abs() <= 1e-3 * stored.abs()
        })
    };
    let factor = factors.iter().copied().fold(1.0, f64::max);
    let usual =
        RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 8192 };
    if fits(&usual) {
        return Ok(usual);
    }
    let between: Vec<(f64, f64)> = factors
        .iter()
        .enumerate()
        .filter(|(_, f)| **f > 1.0 + 1e-6 && **f < factor * (1.0 - 1e-6))
        .map(|(pair, f)| {
            let smooth = (1.0 / f - 1.0 / factor) / (1.0 - 1.0 / factor);
            (frequency(pair) / std::f64::consts::TAU, smooth)
        })
        .collect();
    if let (Some(first), Some(last)) = (between.first(), between.last())
        && between.len() >= 2
        && first.0 != last.0
    {
        let slope = (first.1 - last.1) / (first.0 - last.0);
        let offset = first.1 - slope * first.0;
        let range = 8192.0 / slope;
        // Whole quarters are what configs say; take them where they fit.
        let low = -offset * range;
        let round = |x: f64| (x * 4.0).round() / 4.0;
        for (low, high) in [(round(low), round(low + range)), (low, low + range)] {
            let fitted = RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions: 8192,
            };
            if low > 0.0 && high > low && fits(&fitted) {
                return Ok(fitted);
            }
        }
    }
    Err(FormatError::UnsupportedRope {
        path: file.path.clone(),
        kind: "a table of frequency factors that is not llama3's".into(),
    })
}
