//! GPT-2: layer norm, learned positions, biases, Conv1D weights.

use super::{
    Bias, CONFIG, ConfigFacts, ConfigKeys, DEFAULTS, Defaults, Family, GGUF, GgufFacts, MlpInput, NormKind, PARTS,
    Parts, Positions, Projection, QueryScale, StoredNames, Width,
};

pub static FAMILY: Family = Family {
    model_type: "gpt2",
    wrapper: None,
    class_name: "GPT2LMHeadModel",
    reward_class_name: "GPT2ForSequenceClassification",
    config: ConfigFacts {
        // transformers accepts its general names for GPT-2's own ones.
        keys: ConfigKeys {
            hidden_size: &["n_embd", "hidden_size"],
            layers: &["n_layer", "num_hidden_layers"],
            heads: &["n_head", "num_attention_heads"],
            kv_heads: None,
            head_dim: None,
            intermediate_size: "n_inner",
            max_positions: &["n_positions", "max_position_embeddings"],
            epsilon: "layer_norm_epsilon",
            activation: "activation_function",
        },
        defaults: Defaults {
            vocab_size: 50257,
            hidden_size: 768,
            layers: 12,
            heads: 12,
            intermediate_size: Width::TimesHidden(4),
            epsilon: 1e-5,
            max_positions: 1024,
            tied: true,
            bos: Some(50256),
            eos: Some(50256),
            activation: "gelu_new",
            ..DEFAULTS
        },
        attention_bias: Bias::Always,
        mlp_bias: Bias::Always,
        query_scale: QueryScale::Flag("scale_attn_weights"),
        positions: Positions::Learned,
        refused: &[
            ("scale_attn_by_inverse_layer_idx", "use a plain GPT-2 checkpoint"),
            ("add_cross_attention", "use a plain GPT-2 checkpoint"),
        ],
        ..CONFIG
    },
    stored: StoredNames {
        prefix: "transformer.",
        wrappers: &[],
        foreign: &[],
        // Old checkpoints carry the causal mask as a tensor.
        tables: &[".attn.bias", ".attn.masked_bias"],
    },
    gguf: GgufFacts {
        name: "gpt2",
        epsilon: "attention.layer_norm_epsilon",
        // Converters write the tied head a second time; transformers' GPT-2 has no
        // other head.
        always_tied: true,
        globals: &[
            ("token_embd.weight", "transformer.wte.weight"),
            ("position_embd.weight", "transformer.wpe.weight"),
            ("output_norm.weight", "transformer.ln_f.weight"),
            ("output_norm.bias", "transformer.ln_f.bias"),
        ],
        modules: &[
            ("attn_norm", "ln_1"),
            ("attn_qkv", "attn.c_attn"),
            ("attn_output", "attn.c_proj"),
            ("ffn_norm", "ln_2"),
            ("ffn_up", "mlp.c_fc"),
            ("ffn_down", "mlp.c_proj"),
        ],
        permuted: &[],
        ..GGUF
    },
    parts: Parts {
        embedding: "transformer.wte.weight",
        position_embedding: Some("transformer.wpe.weight"),
        layers: "transformer.h",
        final_norm: "transformer.ln_f",
        norm: NormKind::Layer,
        norm_attention: Some("ln_1"),
        norm_mlp: Some("ln_2"),
        projection: Projection::Fused("attn.c_attn"),
        attention_output: "attn.c_proj",
        mlp_input: MlpInput::Plain("mlp.c_fc"),
        mlp_output: "mlp.c_proj",
        transposed: true,
        ..PARTS
    },
};
