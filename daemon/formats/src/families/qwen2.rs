//! Qwen 2 and 2.5: Llama with biases on q, k and v.

use super::{
    Bias, CONFIG, ConfigFacts, DEFAULTS, Defaults, Family, GGUF, GgufFacts, GgufWindow, OutputBias, PARTS, STORED,
    Width, WindowPattern, Windows,
};

pub static FAMILY: Family = Family {
    model_type: "qwen2",
    wrapper: None,
    class_name: "Qwen2ForCausalLM",
    reward_class_name: "Qwen2ForSequenceClassification",
    config: ConfigFacts {
        defaults: Defaults {
            vocab_size: 151_936,
            kv_heads: Some(32),
            intermediate_size: Width::Fixed(22016),
            max_positions: 32768,
            bos: None,
            eos: None,
            ..DEFAULTS
        },
        attention_bias: Bias::Always,
        output_bias: OutputBias::Never,
        windows: Windows::Listed { default: Some(4096), flagged: true, pattern: WindowPattern::From(28) },
        ..CONFIG
    },
    stored: STORED,
    gguf: GgufFacts { name: "qwen2", window: GgufWindow::Off, permuted: &[], ..GGUF },
    parts: PARTS,
};
