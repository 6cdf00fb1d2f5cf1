//! GGUF tensor names → transformers' names.

use crate::config::Architecture;

/// The canonical name of a GGUF tensor; `None` for tables that are no weights
/// (`rope_freqs.weight`) and for names of other architectures.
///
/// # Source
/// llama.cpp, `gguf-py/gguf/tensor_mapping.py`.
pub(super) fn canonical_name(architecture: Architecture, stored: &str) -> Option<String> {
    if architecture == Architecture::Gpt2 {
        return gpt2(stored);
    }
    let global = match stored {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(name) = global {
        return Some(name.to_string());
    }
    let (layer, part) = layer_and_part(stored)?;
    let (module, kind) = part.rsplit_once('.')?;
    if !matches!(kind, "weight" | "bias") {
        return None;
    }
    let gemma = matches!(architecture, Architecture::Gemma2 | Architecture::Gemma3);
    let module = match module {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_qkv" => "self_attn.qkv_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        // Gemma has four norms a layer, and the name that is the second of
        // two elsewhere is the third of four there.
        "ffn_norm" if gemma => "pre_feedforward_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "post_attention_norm" => "post_attention_layernorm",
        "post_ffw_norm" => "post_feedforward_layernorm",
        "ffn_up" if architecture == Architecture::Phi3 => "mlp.gate_up_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{module}.{kind}"))
}

fn gpt2(stored: &str) -> Option<String> {
    let global = match stored {
        "token_embd.weight" => Some("transformer.wte.weight"),
        "position_embd.weight" => Some("transformer.wpe.weight"),
        "output_norm.weight" => Some("transformer.ln_f.weight"),
        "output_norm.bias" => Some("transformer.ln_f.bias"),
        // Converters write the tied head a second time; transformers' GPT-2
        // has no head of its own.
        _ => None,
    };
    if let Some(name) = global {
        return Some(name.to_string());
    }
    let (layer, part) = layer_and_part(stored)?;
    let (module, kind) = part.rsplit_once('.')?;
    if !matches!(kind, "weight" | "bias") {
        return None;
    }
    let module = match module {
        "attn_norm" => "ln_1",
        "attn_qkv" => "attn.c_attn",
        "attn_output" => "attn.c_proj",
        "ffn_norm" => "ln_2",
        "ffn_up" => "mlp.c_fc",
        "ffn_down" => "mlp.c_proj",
        _ => return None,
    };
    Some(format!("transformer.h.{layer}.{module}.{kind}"))
}

fn layer_and_part(stored: &str) -> Option<(usize, &str)> {
    let (layer, part) = stored.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}
