//! Mistral: Llama with a sliding window in every layer.

use super::{
    Bias, CONFIG, ConfigFacts, DEFAULTS, Defaults, Family, GGUF, GgufFacts, GgufWindow, PARTS, STORED, Width, Windows,
};

pub static FAMILY: Family = Family {
    model_type: "mistral",
    wrapper: None,
    class_name: "MistralForCausalLM",
    reward_class_name: "MistralForSequenceClassification",
    config: ConfigFacts {
        defaults: Defaults {
            kv_heads: Some(8),
            intermediate_size: Width::Fixed(14336),
            max_positions: 131_072,
            ..DEFAULTS
        },
        attention_bias: Bias::Never,
        windows: Windows::EveryLayer(Some(4096)),
        ..CONFIG
    },
    stored: STORED,
    gguf: GgufFacts { name: "mistral", window: GgufWindow::Stored, ..GGUF },
    parts: PARTS,
};
