//! SmolLM 3: Llama with no rope in every fourth layer.

use super::{
    Bias, CONFIG, ConfigFacts, DEFAULTS, Defaults, Family, GGUF, GgufFacts, PARTS, Positions, RotaryLayers, STORED,
    WindowPattern, Windows,
};

pub static FAMILY: Family = Family {
    model_type: "smollm3",
    wrapper: None,
    class_name: "SmolLM3ForCausalLM",
    reward_class_name: "SmolLM3ForSequenceClassification",
    config: ConfigFacts {
        defaults: Defaults {
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
            ..DEFAULTS
        },
        mlp_bias: Bias::Key("mlp_bias"),
        positions: Positions::Rotary {
            partial: false,
            local_theta: None,
            layers: RotaryLayers::Listed { interval: 4 },
        },
        windows: Windows::Listed { default: None, flagged: true, pattern: WindowPattern::WithoutRope },
        ..CONFIG
    },
    stored: STORED,
    gguf: GgufFacts {
        name: "smollm3",
        // llama.cpp assumes what the one published model has.
        no_rope_interval: Some(4),
        ..GGUF
    },
    parts: PARTS,
};
