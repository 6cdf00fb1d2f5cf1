//! Gemma 3, the text half: four norms per layer, q/k norms, two rope bases.

use super::{
    CONFIG, ConfigFacts, ConfigKeys, DEFAULTS, Defaults, Family, GEMMA_MODULES, GEMMA_PARTS, GEMMA_REFUSED, GGUF,
    GgufFacts, GgufWindow, HEAD_NORMS, KEYS, Parts, Positions, QueryScale, RotaryLayers, STORED, Softcaps, Width,
    WindowPattern, Windows,
};

pub static FAMILY: Family = Family {
    model_type: "gemma3_text",
    wrapper: Some("gemma3"),
    class_name: "Gemma3ForCausalLM",
    reward_class_name: "Gemma3TextForSequenceClassification",
    config: ConfigFacts {
        keys: ConfigKeys { activation: "hidden_activation", ..KEYS },
        defaults: Defaults {
            vocab_size: 262_208,
            hidden_size: 2304,
            layers: 26,
            heads: 8,
            kv_heads: Some(4),
            head_dim: Some(256),
            intermediate_size: Width::Fixed(9216),
            max_positions: 131_072,
            theta: 1_000_000.0,
            tied: true,
            bos: Some(2),
            eos: Some(1),
            pad: Some(0),
            activation: "gelu_pytorch_tanh",
            ..DEFAULTS
        },
        softcaps: Some(Softcaps { attention: None, logits: None }),
        query_scale: QueryScale::Scalar { key: "query_pre_attn_scalar", default: 256.0 },
        positions: Positions::Rotary { partial: false, local_theta: Some(10_000.0), layers: RotaryLayers::All },
        windows: Windows::Listed { default: Some(4096), flagged: false, pattern: WindowPattern::AllButEvery(6) },
        refused: GEMMA_REFUSED,
        ..CONFIG
    },
    stored: STORED,
    gguf: GgufFacts {
        name: "gemma3",
        theta: 1_000_000.0,
        window: GgufWindow::Layers(6),
        // Told by its depth: the 27B model alone scales by its width.
        wide_query_layers: Some(62),
        modules: GEMMA_MODULES,
        permuted: &[],
        spaces_are_pieces: true,
        ..GGUF
    },
    parts: Parts { qk_norm: Some(HEAD_NORMS), ..GEMMA_PARTS },
};
