//! Phi 3 and 4: Llama with fused qkv and gate/up matrices.

use super::{
    Bias, CONFIG, ConfigFacts, DEFAULTS, Defaults, Family, GGUF, GgufFacts, GgufWindow, MlpInput, PARTS, Parts,
    Positions, Projection, RotaryLayers, STORED, Width, Windows,
};

pub static FAMILY: Family = Family {
    model_type: "phi3",
    wrapper: None,
    class_name: "Phi3ForCausalLM",
    reward_class_name: "Phi3ForSequenceClassification",
    config: ConfigFacts {
        defaults: Defaults {
            vocab_size: 32064,
            hidden_size: 3072,
            intermediate_size: Width::Fixed(8192),
            epsilon: 1e-5,
            max_positions: 4096,
            eos: Some(32000),
            pad: Some(32000),
            ..DEFAULTS
        },
        attention_bias: Bias::Never,
        positions: Positions::Rotary { partial: true, local_theta: None, layers: RotaryLayers::All },
        windows: Windows::EveryLayer(None),
        ..CONFIG
    },
    stored: STORED,
    gguf: GgufFacts {
        name: "phi3",
        window: GgufWindow::Stored,
        modules: &[
            ("attn_norm", "input_layernorm"),
            ("attn_qkv", "self_attn.qkv_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_up", "mlp.gate_up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ],
        permuted: &[],
        tokens_swallow_space: true,
        ..GGUF
    },
    parts: Parts {
        projection: Projection::Fused("self_attn.qkv_proj"),
        mlp_input: MlpInput::FusedGated("mlp.gate_up_proj"),
        ..PARTS
    },
};
