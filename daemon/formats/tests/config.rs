//! `config.json` → [`ModelConfig`]: transformers' own files, both layouts,
//! defaults, and what is refused.

mod common;

use common::{assert_error, golden_json, llama_config};
use finetuned_formats::{Activation, FormatError, ModelConfig, RopeScaling};
use serde_json::{Value, json};
use std::path::Path;

fn parse(raw: Value) -> Result<ModelConfig, FormatError> {
    ModelConfig::from_json(raw, Path::new("config.json"))
}

fn golden(name: &str) -> ModelConfig {
    parse(golden_json(&format!("configs/{name}.json"))).unwrap()
}

#[test]
fn reads_transformers_own_configs() {
    for (name, model_type) in [
        ("llama", "llama"),
        ("llama3", "llama"),
        ("mistral", "mistral"),
        ("qwen2", "qwen2"),
        ("qwen3", "qwen3"),
        ("gemma2", "gemma2"),
        ("gemma3", "gemma3_text"),
        ("phi3", "phi3"),
        ("smollm3", "smollm3"),
        ("gpt2", "gpt2"),
        ("olmo2", "olmo2"),
    ] {
        let config = golden(name);
        assert_eq!(config.family.model_type, model_type, "{name}");
        let sizes = (
            config.vocab_size,
            config.hidden_size,
            config.layers,
            config.heads,
            config.intermediate_size,
            config.max_positions,
        );
        assert_eq!(sizes, (384, 64, 2, 4, if name == "olmo2" { 64 } else { 128 }, 256), "{name}");
        assert_eq!(config.kv_heads, if name == "gpt2" { 4 } else { 2 }, "{name}");
        assert_eq!(config.bos_token, Some(0), "{name}");
        assert_eq!(config.eos_tokens, [2], "{name}");
        assert_eq!(config.raw["architectures"][0], config.family.class_name);
    }
}

#[test]
fn tells_the_families_apart() {
    let gemma2 = golden("gemma2");
    assert_eq!(gemma2.activation, Activation::GeluTanh);
    assert_eq!(gemma2.attention_softcap, Some(50.0));
    assert_eq!(gemma2.final_softcap, Some(30.0));
    assert_eq!(gemma2.query_scale, 24f32.powf(-0.5));
    assert_eq!(gemma2.layer_is_sliding, [true, false]);
    assert_eq!(gemma2.sliding_window, Some(8));
    assert!(gemma2.family.parts.qk_norm.is_none());
    assert!(gemma2.tied_embeddings);

    let gemma3 = golden("gemma3");
    assert_eq!(gemma3.rope.theta, 1e6);
    assert_eq!(gemma3.local_rope_theta, Some(1e4));
    assert_eq!(gemma3.attention_softcap, None);
    assert!(gemma3.family.parts.qk_norm.is_some());

    let mistral = golden("mistral");
    assert_eq!(mistral.layer_is_sliding, [true, true]);
    assert_eq!(mistral.sliding_window, Some(8));

    let qwen2 = golden("qwen2");
    assert!(qwen2.attention_bias && !qwen2.output_bias && !qwen2.mlp_bias);
    assert_eq!(qwen2.sliding_window, None);
    assert_eq!(qwen2.head_dim, 16);

    let qwen3 = golden("qwen3");
    assert_eq!(qwen3.head_dim, 32);
    assert!(qwen3.family.parts.qk_norm.is_some() && !qwen3.attention_bias);
    assert_eq!(qwen3.query_scale, 32f32.powf(-0.5));

    let smollm3 = golden("smollm3");
    assert_eq!(smollm3.layer_uses_rope, [true, false]);
    assert_eq!(smollm3.rope.theta, 2e6);

    let gpt2 = golden("gpt2");
    assert_eq!(gpt2.activation, Activation::GeluTanh);
    assert!(gpt2.attention_bias && gpt2.output_bias && gpt2.mlp_bias);
    assert_eq!(gpt2.layer_uses_rope, [false, false]);
    assert_eq!(gpt2.pad_token, None);

    let olmo2 = golden("olmo2");
    assert_eq!(olmo2.rope.theta, 500000.0);
    assert_eq!(olmo2.norm_epsilon, 1e-5);
    // What OLMo-2-1124-7B's file leaves out.
    let olmo2 = parse(json!({"model_type": "olmo2", "num_attention_heads": 32})).unwrap();
    assert_eq!((olmo2.kv_heads, olmo2.head_dim, olmo2.max_positions), (32, 128, 2048));
    assert_eq!((olmo2.bos_token, olmo2.eos_tokens, olmo2.pad_token), (None, vec![50279], Some(1)));

    let phi3 = golden("phi3");
    assert_eq!(phi3.rope.rotary_dim, 16);
    assert_eq!(phi3.sliding_window, None);
}

/// The frequencies that transformers computes for the golden llama3 config
/// (`ROPE_INIT_FUNCTIONS["llama3"]`).
#[test]
fn stretches_frequencies_as_transformers_does() {
    let config = golden("llama3");
    assert_eq!(
        config.rope.scaling,
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 64 }
    );
    let expected = [
        1.0,
        0.07940301299095154,
        0.004700753837823868,
        0.0009115831344388425,
        0.00017677668074611574,
        3.428102354519069e-05,
        6.647869668086059e-06,
        1.289173155782919e-06,
    ];
    let frequencies = config.rope.frequencies();
    assert_eq!(frequencies.len(), expected.len());
    for (ours, expected) in frequencies.iter().zip(expected) {
        assert!((ours - expected).abs() <= 1e-6 * expected, "{ours} {expected}");
    }
    let linear = parse(llama_config(json!({"rope_scaling": {"type": "linear", "factor": 4.0}}))).unwrap();
    assert_eq!(linear.rope.frequencies()[0], 0.25);
}

#[test]
fn reads_the_layout_of_transformers_4() {
    let llama = parse(llama_config(json!({
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
        "torch_dtype": "bfloat16",
    })))
    .unwrap();
    assert_eq!(llama.rope.theta, 500000.0);
    assert!(matches!(llama.rope.scaling, RopeScaling::Llama3 { factor: 32.0, .. }));

    let gemma3 = parse(json!({
        "model_type": "gemma3_text", "num_hidden_layers": 12, "sliding_window": 512,
        "sliding_window_pattern": 6, "rope_theta": 1000000, "rope_local_base_freq": 20000,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }))
    .unwrap();
    let global: Vec<usize> = (0..12).filter(|i| !gemma3.layer_is_sliding[*i]).collect();
    assert_eq!(global, [5, 11]);
    assert_eq!(gemma3.local_rope_theta, Some(20000.0));
    assert_eq!(gemma3.rope.scaling, RopeScaling::Linear { factor: 8.0 });

    let qwen2 = parse(json!({
        "model_type": "qwen2", "num_hidden_layers": 4, "use_sliding_window": true,
        "sliding_window": 1024, "max_window_layers": 3, "rope_theta": 1e6,
    }))
    .unwrap();
    assert_eq!(qwen2.layer_is_sliding, [false, false, false, true]);

    let phi3 = parse(json!({
        "model_type": "phi3", "partial_rotary_factor": 0.75, "rope_scaling": null,
        "sliding_window": 2047,
    }))
    .unwrap();
    assert_eq!(phi3.rope.rotary_dim, 72);
    assert_eq!(phi3.layer_is_sliding, vec![true; 32]);
}

#[test]
fn takes_the_text_half_of_a_multimodal_gemma3() {
    let config = parse(json!({
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "text_config": {"hidden_size": 2560, "num_hidden_layers": 34, "sliding_window": 1024},
        "vision_config": {"hidden_size": 1152},
    }))
    .unwrap();
    assert_eq!((config.hidden_size, config.layers), (2560, 34));
    assert_eq!(config.vocab_size, 262_208);
    assert_eq!(config.eos_tokens, [1, 106]);
    assert_eq!(config.raw["model_type"], "gemma3_text");
    assert_eq!(config.raw["architectures"][0], "Gemma3ForCausalLM");
    assert!(config.raw.get("vision_config").is_none());
}

/// A key that is absent is the class's default; a null is none.
#[test]
fn fills_in_each_class_defaults() {
    let minimal = |model_type: &str| parse(json!({"model_type": model_type})).unwrap();
    let mistral = minimal("mistral");
    assert_eq!(mistral.sliding_window, Some(4096));
    assert_eq!((mistral.kv_heads, mistral.head_dim), (8, 128));
    let none = parse(json!({"model_type": "mistral", "sliding_window": null})).unwrap();
    assert_eq!(none.layer_is_sliding, vec![false; 32]);
    assert_eq!(minimal("llama").kv_heads, 32);
    assert_eq!(minimal("qwen3").head_dim, 128);
    assert_eq!(minimal("gemma2").query_scale, 1.0 / 16.0);
    assert_eq!(minimal("gemma3_text").layer_is_sliding[..7], [true, true, true, true, true, false, true]);
    assert_eq!(minimal("smollm3").layer_uses_rope[..5], [true, true, true, false, true]);
    assert_eq!(minimal("phi3").eos_tokens, [32000]);
    let gpt2 = minimal("gpt2");
    assert_eq!((gpt2.intermediate_size, gpt2.head_dim), (3072, 64));
    let uncapped = parse(json!({"model_type": "gemma2", "attn_logit_softcapping": null})).unwrap();
    assert_eq!(uncapped.attention_softcap, None);
    assert_eq!(uncapped.final_softcap, Some(30.0));
}

#[test]
fn names_what_it_does_not_support() {
    assert_error(
        parse(json!({"model_type": "mamba"})),
        &["config.json", "\"mamba\"", "llama, mistral, qwen2, qwen3, gemma2, gemma3_text", "gpt2"],
    );
    for kind in ["yarn", "longrope", "dynamic", "su"] {
        assert_error(
            parse(llama_config(json!({"rope_scaling": {"rope_type": kind, "factor": 2.0}}))),
            &["rope scaling", kind, "llama3"],
        );
    }
    assert_error(
        parse(llama_config(json!({"quantization_config": {"quant_method": "gptq"}}))),
        &["gptq", "unquantised"],
    );
    for flag in ["scale_attn_by_inverse_layer_idx", "add_cross_attention"] {
        assert_error(parse(json!({"model_type": "gpt2", flag: true})), &[flag]);
    }
    assert_error(
        parse(json!({"model_type": "gemma3_text", "use_bidirectional_attention": true})),
        &["use_bidirectional_attention"],
    );
    assert_error(parse(llama_config(json!({"hidden_act": "relu"}))), &["hidden_act", "relu", "silu"]);
}

#[test]
fn refuses_impossible_values() {
    for (changes, says) in [
        (json!({"hidden_size": 0}), "hidden_size"),
        (json!({"hidden_size": -4}), "hidden_size"),
        (json!({"hidden_size": "big"}), "hidden_size"),
        (json!({"hidden_size": 1e300}), "hidden_size"),
        (json!({"vocab_size": u64::MAX}), "vocab_size"),
        (json!({"num_hidden_layers": 1_000_000_000}), "num_hidden_layers"),
        (json!({"num_attention_heads": 0}), "num_attention_heads"),
        (json!({"num_attention_heads": 3}), "num_attention_heads"),
        (json!({"num_key_value_heads": 0}), "num_key_value_heads"),
        (json!({"num_attention_heads": 2, "num_key_value_heads": 4}), "num_key_value_heads"),
        (json!({"head_dim": 3}), "rotary"),
        (json!({"rms_norm_eps": -1.0}), "rms_norm_eps"),
        (json!({"rope_theta": 0}), "rope_theta"),
        (json!({"rope_scaling": {"type": "linear", "factor": 0.0}}), "rope_scaling.factor"),
        (json!({"rope_scaling": {"type": "linear"}}), "factor"),
        (json!({"rope_scaling": "linear"}), "rope_scaling"),
        (json!({"eos_token_id": ["x"]}), "eos_token_id"),
        (json!({"tie_word_embeddings": 1}), "tie_word_embeddings"),
    ] {
        assert_error(parse(llama_config(changes)), &["config.json", says]);
    }
    assert_error(
        parse(json!({"model_type": "qwen2", "num_hidden_layers": 3, "layer_types": ["full_attention"]})),
        &["layer_types", "3 entries"],
    );
    assert_error(parse(json!({"model_type": "smollm3", "no_rope_layers": [1, 0]})), &["no_rope_layers"]);
    assert_error(parse(json!({"model_type": "gemma2", "sliding_window": null})), &["sliding_window"]);
    assert_error(parse(json!([1])), &["a list"]);
    assert_error(parse(json!({"hidden_size": 4})), &["model_type"]);
}
