//! OLMo 2: norms behind the branches instead of before them, and a norm over all heads
//! of q and of k.

use super::{
    CONFIG, ConfigFacts, DEFAULTS, Defaults, Family, GGUF, GgufFacts, GgufWindow, PARTS, Parts, QkNorm, QkNormOver,
    STORED,
};

pub static FAMILY: Family = Family {
    model_type: "olmo2",
    wrapper: None,
    class_name: "Olmo2ForCausalLM",
    // The name that AllenAI's reward models carry; transformers has no such class.
    reward_class_name: "Olmo2ForSequenceClassification",
    config: ConfigFacts {
        defaults: Defaults { vocab_size: 50304, epsilon: 1e-5, bos: None, eos: Some(50279), pad: Some(1), ..DEFAULTS },
        ..CONFIG
    },
    stored: STORED,
    gguf: GgufFacts {
        name: "olmo2",
        // llama.cpp converts OLMo 3 under the same name, with a window.
        window: GgufWindow::Refused("OLMo 3 has no decoder here"),
        modules: &[
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("attn_q_norm", "self_attn.q_norm"),
            ("attn_k_norm", "self_attn.k_norm"),
            ("post_attention_norm", "post_attention_layernorm"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_down", "mlp.down_proj"),
            ("post_ffw_norm", "post_feedforward_layernorm"),
        ],
        permuted: &[],
        ..GGUF
    },
    parts: Parts {
        norm_attention: None,
        post_attention: Some("post_attention_layernorm"),
        norm_mlp: None,
        post_mlp: Some("post_feedforward_layernorm"),
        qk_norm: Some(QkNorm { query: "self_attn.q_norm", key: "self_attn.k_norm", over: QkNormOver::Token }),
        ..PARTS
    },
};
