//! Qwen 3: Llama with a norm on each head of q and k.

use super::{
    CONFIG, ConfigFacts, DEFAULTS, Defaults, Family, GGUF, GgufFacts, GgufWindow, HEAD_NORMS, PARTS, Parts, STORED,
    Width, WindowPattern, Windows,
};

pub static FAMILY: Family = Family {
    model_type: "qwen3",
    wrapper: None,
    class_name: "Qwen3ForCausalLM",
    reward_class_name: "Qwen3ForSequenceClassification",
    config: ConfigFacts {
        defaults: Defaults {
            vocab_size: 151_936,
            kv_heads: Some(32),
            head_dim: Some(128),
            intermediate_size: Width::Fixed(22016),
            max_positions: 32768,
            bos: None,
            eos: None,
            ..DEFAULTS
        },
        windows: Windows::Listed { default: Some(4096), flagged: true, pattern: WindowPattern::From(28) },
        ..CONFIG
    },
    stored: STORED,
    gguf: GgufFacts { name: "qwen3", window: GgufWindow::Off, permuted: &[], ..GGUF },
    parts: Parts { qk_norm: Some(HEAD_NORMS), ..PARTS },
};
