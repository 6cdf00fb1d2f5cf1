//! GGUF files: every tensor type to the last bit, every architecture's names
//! and layout, and files that lie.

mod common;

use common::*;
use finetuned_formats::{ModelFiles, ModelKind, RopeScaling, StoredType};
use sha2::{Digest, Sha256};

const FIXTURES: &[(&str, &str)] = &[
    ("llama.gguf", "llama"),
    ("spm-llama.gguf", "llama"),
    ("qwen2.gguf", "qwen2"),
    ("qwen3.gguf", "qwen3"),
    ("gemma2.gguf", "gemma2"),
    ("gemma3.gguf", "gemma3_text"),
    ("phi3.gguf", "phi3"),
    ("smollm3.gguf", "smollm3"),
    ("gpt2.gguf", "gpt2"),
    ("olmo2.gguf", "olmo2"),
];

fn open(name: &str) -> ModelFiles {
    ModelFiles::open(&golden("gguf").join(name)).unwrap()
}

/// Names, shapes and every bit of every tensor, as `make_gguf.py` says.
#[test]
fn reads_every_tensor_of_every_architecture() {
    let expected = golden_json("gguf/expected.json");
    for (name, model_type) in FIXTURES {
        let model = open(name);
        assert_eq!(model.kind, ModelKind::Gguf);
        assert_eq!(model.config.family.model_type, *model_type);
        let tensors = expected[name]["tensors"].as_object().unwrap();
        let mut names: Vec<&String> = tensors.keys().collect();
        names.sort();
        assert_eq!(model.tensors.names().iter().collect::<Vec<_>>(), names, "{name}");
        for (tensor, expected) in tensors {
            let info = model.tensors.info(tensor).unwrap();
            assert_eq!(serde_json::json!(info.shape), expected["shape"], "{name} {tensor}");
            let values = model.tensors.read_f32(tensor).unwrap();
            let theirs: Vec<f32> =
                expected["first"].as_array().unwrap().iter().filter_map(|x| x.as_f64().map(|x| x as f32)).collect();
            assert_eq!(values[..4], theirs, "{name} {tensor} {:?}", info.stored);
            let hash: String = Sha256::digest(f32_bytes(&values)).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hash, expected["sha256"], "{name} {tensor} {:?}", info.stored);

            let mut again = vec![0.0; values.len()];
            model.tensors.read_f32_into(tensor, &mut again).unwrap();
            assert_eq!(again, values);
            assert!(model.tensors.read_f32_into(tensor, &mut again[1..]).is_err());
        }
        assert_error(model.tensors.read_f32("nothing"), &["no tensor", name]);
    }
}

/// One file holds all the types there are, so the test above covered each.
#[test]
fn the_fixture_holds_every_type() {
    let model = open("llama.gguf");
    let mut seen: Vec<StoredType> = Vec::new();
    for name in model.tensors.names() {
        let stored = model.tensors.info(&name).unwrap().stored;
        if !seen.contains(&stored) {
            seen.push(stored);
        }
    }
    assert_eq!(seen.len(), 11, "{seen:?}");
}

#[test]
fn reads_each_architectures_metadata() {
    let llama = open("llama.gguf").config;
    assert_eq!((llama.heads, llama.kv_heads, llama.head_dim), (4, 2, 16));
    assert_eq!(llama.norm_epsilon, 1e-5);
    assert!(llama.tied_embeddings);
    assert_eq!(llama.rope.theta, 500000.0);
    assert_eq!(
        llama.rope.scaling,
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 8192 }
    );
    assert_eq!(llama.bos_token, Some(0));
    assert_eq!(llama.eos_tokens, [2]);

    let qwen2 = open("qwen2.gguf").config;
    assert!(qwen2.attention_bias && !qwen2.tied_embeddings);
    assert_eq!(qwen2.rope.theta, 20000.0);
    assert_eq!(qwen2.sliding_window, None);

    let gemma2 = open("gemma2.gguf").config;
    assert_eq!(gemma2.attention_softcap, Some(50.0));
    assert_eq!(gemma2.layer_is_sliding, [true, false]);
    assert_eq!(gemma2.sliding_window, Some(8));
    assert_eq!(gemma2.query_scale, 8f32.powf(-0.5));

    let gemma3 = open("gemma3.gguf").config;
    assert_eq!(gemma3.local_rope_theta, Some(10000.0));
    assert_eq!(gemma3.rope.theta, 20000.0);
    assert_eq!(gemma3.layer_is_sliding, [true, true]);
    assert_eq!(gemma3.eos_tokens, [1]);
    assert_eq!(gemma3.pad_token, Some(0));

    let phi3 = open("phi3.gguf").config;
    assert_eq!(phi3.layer_is_sliding, [true, true]);
    assert_eq!(phi3.sliding_window, Some(12));
    assert_eq!(phi3.rope.rotary_dim, 8);

    assert_eq!(open("smollm3.gguf").config.layer_uses_rope, [true, true]);
    let olmo2 = open("olmo2.gguf").config;
    assert_eq!((olmo2.heads, olmo2.kv_heads, olmo2.head_dim), (2, 1, 8));
    assert!(!olmo2.tied_embeddings && !olmo2.attention_bias);
    assert_eq!(olmo2.rope.theta, 20000.0);
    let gpt2 = open("gpt2.gguf").config;
    assert_eq!((gpt2.intermediate_size, gpt2.max_positions), (64, 32));
    assert!(gpt2.tied_embeddings);
}

/// The synthesised config.json reads as the same config.
#[test]
fn the_synthesised_config_reads_back() {
    for (name, _) in FIXTURES {
        let config = open(name).config;
        let again =
            finetuned_formats::ModelConfig::from_json(config.raw.clone(), std::path::Path::new("config.json")).unwrap();
        assert_eq!(again, config, "{name}");
    }
}

#[test]
fn recovers_other_llama3_scalings_and_refuses_what_is_none() {
    let theta = 10000f64;
    let (heads, dim) = (2u64, 64u64);
    let with_factors = |factors: &[f32]| {
        let mut gguf = Gguf::llama();
        gguf.set("llama.embedding_length", 4, &128u32.to_le_bytes());
        gguf.set("llama.attention.head_count", 4, &(heads as u32).to_le_bytes());
        gguf.tensor("token_embd.weight", &[128, 8], 0, &f32_bytes(&ramp(1024)));
        gguf.tensor("rope_freqs.weight", &[factors.len() as u64], 0, &f32_bytes(factors));
        gguf.open()
    };
    let factors = |scaling: RopeScaling| -> Vec<f32> {
        (0..dim / 2).map(|i| scaling.divisor(theta.powf(-2.0 * i as f64 / dim as f64)) as f32).collect()
    };
    for (factor, low, high) in [(32.0, 1.0, 4.0), (8.0, 1.0, 4.0), (4.0, 2.0, 8.0), (16.0, 1.5, 3.25)] {
        let scaling =
            RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_max_positions: 8192 };
        let model = with_factors(&factors(scaling)).unwrap();
        assert_eq!(model.config.rope.scaling, scaling);
        assert_eq!(model.config.raw["rope_parameters"]["rope_type"], "llama3");
    }
    let ones = with_factors(&[1.0; 32]).unwrap();
    assert_eq!(ones.config.rope.scaling, RopeScaling::None);
    let noise: Vec<f32> = (0..32).map(|i| 1.0 + (i * 7 % 5) as f32).collect();
    assert_error(with_factors(&noise), &["rope scaling", "llama3"]);
    assert_error(with_factors(&[1.0; 31]), &["31 factors", "64"]);
}

#[test]
fn opens_a_folder_with_one_gguf_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    std::fs::copy(golden("gguf/qwen3.gguf"), &path).unwrap();
    let model = ModelFiles::open(folder.path()).unwrap();
    assert_eq!(model.origin, path);
    assert_eq!(model.fingerprint().unwrap(), ModelFiles::open(&path).unwrap().fingerprint().unwrap());
    std::fs::copy(&path, folder.path().join("b.gguf")).unwrap();
    assert_error(ModelFiles::open(folder.path()), &["2 GGUF files"]);
}

#[test]
fn version_2_and_linear_scaling_are_read() {
    let mut gguf = Gguf::llama();
    gguf.version = 2;
    gguf.text("llama.rope.scaling.type", "linear");
    gguf.float("llama.rope.scaling.factor", 4.0);
    gguf.embedding();
    let model = gguf.open().unwrap();
    assert_eq!(model.config.rope.scaling, RopeScaling::Linear { factor: 4.0 });
    assert_eq!(model.tensors.read_f32("model.embed_tokens.weight").unwrap(), ramp(32));
}

/// Cut anywhere, a file is an error that names it, and never a panic.
#[test]
fn a_file_cut_off_anywhere_is_an_error() {
    let mut gguf = Gguf::llama();
    gguf.embedding();
    let whole = gguf.bytes();
    assert!(open_bytes(&whole).is_ok());
    for length in 0..whole.len() {
        assert_error(open_bytes(&whole[..length]), &["model.gguf"]);
    }
}

/// Any one byte wrong, the file opens or is an error: no panic, no hang, and
/// no allocation that the file could not fill.
#[test]
fn a_byte_wrong_anywhere_is_no_panic() {
    let mut gguf = Gguf::llama();
    gguf.embedding();
    let whole = gguf.bytes();
    let (mut opened, mut failed) = (0, 0);
    for at in 0..whole.len() {
        for flip in [0xff, 0x80, 0x01] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("model.gguf");
            std::fs::write(&path, &bytes).unwrap();
            match ModelFiles::open(&path) {
                Ok(model) => {
                    opened += 1;
                    for name in model.tensors.names() {
                        let _ = model.tensors.read_f32(&name);
                    }
                }
                Err(_) => failed += 1,
            }
        }
    }
    assert!(opened > 100 && failed > 500, "{opened} opened, {failed} failed");
}

#[test]
fn a_file_that_lies_is_an_error() {
    let lie = |change: &dyn Fn(&mut Gguf)| {
        let mut gguf = Gguf::llama();
        gguf.embedding();
        change(&mut gguf);
        gguf.open()
    };
    let huge = u64::MAX.to_le_bytes();
    let list_of = |kind: u32, count: u64| {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes
    };
    assert_error(lie(&|g| g.version = 1), &["version 1", "2 and 3"]);
    assert_error(lie(&|g| g.version = 4), &["version 4"]);
    assert_error(lie(&|g| g.version = 3 << 24), &["big-endian"]);
    assert_error(lie(&|g| g.number("llama.block_count", 1)), &["twice", "llama.block_count"]);
    assert_error(lie(&|g| g.raw_value("x", 8, &huge)), &["cut off", "string"]);
    assert_error(lie(&|g| g.raw_value("x", 99, &[])), &["type 99"]);
    assert_error(lie(&|g| g.raw_value("x", 9, &list_of(5, u64::MAX))), &["cut off", "list"]);
    assert_error(lie(&|g| g.raw_value("x", 9, &list_of(9, 1))), &["list of type 9"]);
    assert_error(lie(&|g| g.number("general.alignment", 3)), &["general.alignment"]);
    assert_error(lie(&|g| g.number("general.alignment", 0)), &["general.alignment"]);
    assert_error(lie(&|g| g.number("split.count", 3)), &["3 files", "merge"]);

    let norm = "output_norm.weight";
    assert_error(lie(&|g| g.raw_tensor("token_embd.weight", &[4], 0, 0)), &["twice"]);
    assert_error(lie(&|g| g.raw_tensor(norm, &[4], 0, 0)), &["overlap"]);
    assert_error(lie(&|g| g.raw_tensor(norm, &[4], 0, 128)), &["cut off", norm]);
    assert_error(lie(&|g| g.raw_tensor(norm, &[4], 0, u64::MAX - 31)), &["impossible offset"]);
    assert_error(lie(&|g| g.raw_tensor(norm, &[4], 0, 4)), &["no multiple of 32"]);
    assert_error(lie(&|g| g.raw_tensor(norm, &[], 0, 0)), &["0 dimensions"]);
    assert_error(lie(&|g| g.raw_tensor(norm, &[1; 5], 0, 0)), &["5 dimensions"]);
    assert_error(lie(&|g| g.raw_tensor(norm, &[0], 0, 0)), &["impossible shape"]);
    assert_error(lie(&|g| g.raw_tensor(norm, &[1 << 40, 1 << 40], 0, 0)), &["impossible shape"]);
    assert_error(lie(&|g| g.raw_tensor(norm, &[33], 8, 0)), &["rows of 33", "Q8_0"]);
    assert_error(lie(&|g| g.raw_tensor(norm, &[32], 16, 0)), &["IQ2_XXS", "Q6_K"]);
    assert_error(lie(&|g| g.raw_tensor(norm, &[32], 77, 0)), &["type 77"]);
    let four = f32_bytes(&ramp(4));
    assert_error(lie(&|g| g.tensor("blk.0.ffn_gate_exps.weight", &[4], 0, &four)), &["ffn_gate_exps", "not supported"]);
    // Rows that are no whole heads.
    assert_error(lie(&|g| g.tensor("blk.0.attn_q.weight", &[4, 3], 0, &f32_bytes(&ramp(12)))), &["attn_q", "3 rows"]);

    let text = |g: &mut Gguf, key: &str, value: &str| g.set(key, 8, &string(value));
    assert_error(lie(&|g| text(g, "general.architecture", "mamba")), &["\"mamba\"", "llama, mistral"]);
    assert_error(lie(&|g| text(g, "llama.block_count", "one")), &["llama.block_count", "whole number"]);
    assert_error(lie(&|g| g.set("llama.block_count", 5, &(-1i32).to_le_bytes())), &["llama.block_count"]);
    assert_error(lie(&|g| g.set("llama.attention.head_count", 4, &[0; 4])), &["num_attention_heads"]);
    assert_error(lie(&|g| g.number("llama.expert_count", 8)), &["mixture of experts"]);
    assert_error(lie(&|g| g.number("llama.rope.dimension_count", 1)), &["rope.dimension_count"]);
    assert_error(lie(&|g| g.text("llama.rope.scaling.type", "yarn")), &["yarn"]);
    assert_error(lie(&|g| g.tensor("rope_factors_long.weight", &[4], 0, &four)), &["longrope"]);
    assert_error(lie(&|g| text(g, "tokenizer.ggml.model", "bert")), &["bert"]);
    assert_error(lie(&|g| text(g, "tokenizer.ggml.pre", "esperanto")), &["pre-tokenizer", "esperanto"]);
    assert_error(lie(&|g| g.set("tokenizer.ggml.eos_token_id", 4, &99u32.to_le_bytes())), &["eos_token_id", "99"]);

    // OLMo 3 comes under OLMo 2's name; a window of 0 is none.
    let olmo = |window: u32| {
        let mut gguf = Gguf::decoder("olmo2");
        gguf.embedding();
        gguf.number("olmo2.attention.sliding_window", window);
        gguf.open()
    };
    assert_error(olmo(4096), &["olmo2.attention.sliding_window = 4096", "OLMo 3"]);
    assert!(olmo(0).is_ok());

    let mut nameless = Gguf::new();
    nameless.embedding();
    assert_error(nameless.open(), &["general.architecture"]);
    assert_error(Gguf::llama().open(), &["token_embd.weight"]);
    assert_error(open_bytes(b"<html>not a model, but long enough</html>"), &["GGUF"]);
}
