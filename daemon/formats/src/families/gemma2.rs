//! Gemma 2: four norms per layer, soft caps, alternating windows.

use super::{
    CONFIG, ConfigFacts, ConfigKeys, DEFAULTS, Defaults, Family, GEMMA_MODULES, GEMMA_PARTS, GEMMA_REFUSED, GGUF,
    GgufFacts, GgufWindow, KEYS, QueryScale, STORED, Softcaps, Width, WindowPattern, Windows,
};

pub static FAMILY: Family = Family {
    model_type: "gemma2",
    wrapper: None,
    class_name: "Gemma2ForCausalLM",
    reward_class_name: "Gemma2ForSequenceClassification",
    config: ConfigFacts {
        keys: ConfigKeys { activation: "hidden_activation", ..KEYS },
        defaults: Defaults {
            vocab_size: 256_000,
            hidden_size: 2304,
            layers: 26,
            heads: 8,
            kv_heads: Some(4),
            head_dim: Some(256),
            intermediate_size: Width::Fixed(9216),
            max_positions: 8192,
            tied: true,
            bos: Some(2),
            eos: Some(1),
            pad: Some(0),
            activation: "gelu_pytorch_tanh",
            ..DEFAULTS
        },
        softcaps: Some(Softcaps { attention: Some(50.0), logits: Some(30.0) }),
        query_scale: QueryScale::Scalar { key: "query_pre_attn_scalar", default: 256.0 },
        windows: Windows::Listed { default: Some(4096), flagged: false, pattern: WindowPattern::Alternating },
        refused: GEMMA_REFUSED,
        ..CONFIG
    },
    stored: STORED,
    gguf: GgufFacts {
        name: "gemma2",
        window: GgufWindow::Default(4096),
        // Told by its depth: the 27B model alone scales by its width.
        wide_query_layers: Some(46),
        modules: GEMMA_MODULES,
        permuted: &[],
        spaces_are_pieces: true,
        ..GGUF
    },
    parts: GEMMA_PARTS,
};
