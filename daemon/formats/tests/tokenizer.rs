//! Tokenizers: from GGUF metadata, compared id by id with transformers and
//! llama.cpp; and from folders, whose settings are spread over many files.

mod common;

use common::*;
use finetuned_formats::{ModelFiles, TokenizerSource};
use serde_json::json;
use tokenizers::Tokenizer;

fn source(name: &str) -> TokenizerSource {
    ModelFiles::open(&golden("gguf").join(name)).unwrap().tokenizer
}

fn load(source: &TokenizerSource) -> Tokenizer {
    source.json.parse().unwrap()
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, true).unwrap().get_ids().to_vec()
}

/// The ids that transformers gives for the same files (`expected.json`).
#[test]
fn gguf_tokenizers_agree_with_transformers() {
    let expected = golden_json("gguf/expected.json");
    let mut compared = 0;
    for (name, file) in expected.as_object().unwrap() {
        let tokenizer = load(&source(name));
        for (text, theirs) in file["ids"].as_object().unwrap() {
            assert_eq!(json!(ids(&tokenizer, text)), *theirs, "{name} {text:?}");
            compared += 1;
        }
    }
    assert_eq!(compared, 60);
}

/// Ids that llama.cpp (xllamacpp 2026.10.11549) gives for spm-llama.gguf:
/// every piece between special tokens gets a space in front, also one that
/// begins with a space.
#[test]
fn sentencepiece_agrees_with_llama_cpp() {
    let tokenizer = load(&source("spm-llama.gguf"));
    for (text, theirs) in [
        ("  two  spaces", &[1, 277, 277, 261, 300, 292, 277, 277, 296, 293, 278, 280, 282, 296][..]),
        ("<|im_start|>user\nhi<|im_end|>\n", &[1, 3, 277, 298, 296, 274, 15, 285, 286, 4, 277, 15]),
        ("<s>hello</s> there", &[1, 1, 272, 2, 277, 263, 295, 282]),
        (" leading", &[1, 277, 277, 289, 282, 278, 281, 286, 291, 284]),
        ("", &[1]),
    ] {
        assert_eq!(ids(&tokenizer, text), theirs, "{text:?}");
    }
    let encoded = ids(&tokenizer, "hello Wörld 🚀");
    assert_eq!(tokenizer.decode(&encoded, true).unwrap(), "hello Wörld 🚀");
    assert_eq!(tokenizer.decode(&encoded, false).unwrap(), "<s> hello Wörld 🚀");
}

/// Gemma's runs of spaces are taken longest first, as llama.cpp takes them.
#[test]
fn gemma_takes_the_longest_runs_of_spaces() {
    let tokenizer = load(&source("gemma3.gguf"));
    assert_eq!(ids(&tokenizer, "     x"), [2, 7, 6, 304]);
    assert_eq!(ids(&tokenizer, "x     "), [2, 304, 7, 6]);
}

/// Phi-3's own tokens swallow the white space after them.
#[test]
fn phi3_tokens_swallow_what_follows() {
    let tokenizer = load(&source("phi3.gguf"));
    let plain = ids(&tokenizer, "<|im_start|>hello<|im_end|>");
    assert_eq!(ids(&tokenizer, "<|im_start|>\nhello<|im_end|>\n"), plain);
    assert_ne!(ids(&tokenizer, "<s> hello"), ids(&tokenizer, "<s>hello"));
}

/// The digits of smollm's scheme stand alone, and the space before them too.
#[test]
fn each_pre_tokenizer_cuts_its_own_way() {
    let cut = |pre: &str| {
        let mut gguf = Gguf::llama();
        gguf.embedding();
        gguf.set("tokenizer.ggml.pre", 8, &string(pre));
        let source = gguf.open().unwrap().tokenizer;
        let tokenizer = load(&source);
        use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
        let mut text = PreTokenizedString::from("I'LL add 1234 x\n\n  y");
        tokenizer.get_pre_tokenizer().unwrap().pre_tokenize(&mut text).unwrap();
        let pieces: Vec<String> = text
            .get_splits(OffsetReferential::Original, OffsetType::Byte)
            .into_iter()
            .map(|(piece, _, _)| piece.replace('Ġ', " ").replace('Ċ', "\n"))
            .collect();
        (pieces.join("|"), source.add_bos, source.json)
    };
    let gpt2 = "I|'|LL| add| 1234| x|\n\n |  y".replace("|\n\n |  y", "|\n\n | y");
    assert_eq!(cut("gpt-2").0, gpt2);
    let smollm = "I|'|LL| add| |1|2|3|4| x|\n\n | y";
    for pre in ["smollm", "starcoder", "command-r"] {
        assert_eq!(cut(pre).0, smollm, "{pre}");
    }
    let llama3 = "I|'LL| add| |123|4| x|\n\n| | y";
    for pre in ["llama-bpe", "llama3", "smaug-bpe", "dbrx"] {
        assert_eq!(cut(pre).0, llama3, "{pre}");
    }
    let qwen2 = "I|'LL| add| |1|2|3|4| x|\n\n| | y";
    for pre in ["qwen2", "deepseek-r1-qwen", "stablelm2"] {
        assert_eq!(cut(pre).0, qwen2, "{pre}");
    }
    assert_eq!(cut("tekken").0, "I|'LL| add| |1|2|3|4| x|\n\n| | y");
    assert_eq!(cut("gpt-4o").0, "I'LL| add| |123|4| x|\n\n| | y");
    assert_eq!(cut("deepseek-v3").0, "I|'LL| add| |123|4| x|\n\n| | y");
    assert_eq!(cut("default").0, "I|'|LL| add| |123|4| x|\n\n | y");
    assert!(cut("qwen2").2.contains(r#""normalizer":{"type":"NFC"}"#));
    assert!(cut("llama-bpe").2.contains(r#""ignore_merges":true"#));
    assert!(!cut("smollm").2.contains(r#""ignore_merges":true"#));
}

#[test]
fn special_tokens_and_ends_of_turn() {
    let llama = source("llama.gguf");
    assert_eq!(llama.bos_token.as_deref(), Some("<|endoftext|>"));
    assert_eq!(llama.eos_token.as_deref(), Some("<|im_end|>"));
    assert!(llama.add_bos && !llama.add_eos);
    // The file's own eos and the ends of turn that it holds.
    assert_eq!(llama.eos_ids, [0, 2]);
    let tokenizer = load(&llama);
    assert_eq!(ids(&tokenizer, "<think>")[1..], [tokenizer.token_to_id("<think>").unwrap()]);
    assert_eq!(tokenizer.decode(&[1, 2], true).unwrap(), "");
    // A filler up to the embedding's rows is no token.
    assert_eq!(tokenizer.token_to_id("[PAD277]"), None);
    assert_eq!(llama.chat_template.as_deref(), Some("{% for m in messages %}{{ m['content'] }}{% endfor %}"));
    let gemma = source("gemma3.gguf");
    assert_eq!(gemma.pad_token.as_deref(), Some("<pad>"));
    assert_eq!(gemma.unk_token.as_deref(), Some("<unk>"));
    assert!(gemma.add_bos);

    let mut gguf = Gguf::llama();
    gguf.embedding();
    gguf.raw_value("tokenizer.ggml.add_bos_token", 7, &[1]);
    // No BOS to add: the flag alone adds nothing.
    assert!(!gguf.open().unwrap().tokenizer.add_bos);
    gguf.number("tokenizer.ggml.bos_token_id", 7);
    gguf.raw_value("tokenizer.ggml.add_eos_token", 7, &[1]);
    let both = gguf.open().unwrap().tokenizer;
    assert_eq!(ids(&load(&both), "ab"), [7, 4, 0]);
    let without = load(&both).encode("ab", false).unwrap();
    assert_eq!(without.get_ids(), [4]);
}

/// What a full fine-tune of a GGUF model leaves beside its weights.
#[test]
fn the_synthesised_files_read_as_the_same_tokenizer() {
    for name in ["llama.gguf", "gemma3.gguf", "phi3.gguf", "qwen2.gguf"] {
        let model = ModelFiles::open(&golden("gguf").join(name)).unwrap();
        let specs: Vec<_> = model
            .tensors
            .names()
            .into_iter()
            .map(|name| {
                let shape = model.tensors.info(&name).unwrap().shape;
                finetuned_formats::TensorSpec::new(name, &shape, finetuned_formats::ElementType::F32)
            })
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        finetuned_formats::write_model_folder(
            &out,
            &model.config.raw,
            &model.tokenizer.extra_files,
            &specs,
            |spec, sink| {
                let values = model.tensors.read_f32(&spec.name)?;
                sink.write(finetuned_formats::Values::F32(&values))
            },
        )
        .unwrap();
        let again = ModelFiles::open(&out).unwrap();
        let mut theirs = again.tokenizer;
        theirs.extra_files.clear();
        let mut ours = model.tokenizer;
        ours.extra_files.clear();
        assert_eq!(theirs, ours, "{name}");
        assert_eq!(again.config.family, model.config.family);
        for tensor in model.tensors.names() {
            assert_eq!(again.tensors.read_f32(&tensor).unwrap(), model.tensors.read_f32(&tensor).unwrap());
        }
    }
}

#[test]
fn broken_vocabularies_are_errors() {
    let open = |change: &dyn Fn(&mut Gguf)| {
        let mut gguf = Gguf::llama();
        gguf.embedding();
        change(&mut gguf);
        gguf.open()
    };
    let texts = |list: &[&str]| {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((list.len() as u64).to_le_bytes());
        bytes.extend(list.iter().flat_map(|text| string(text)));
        bytes
    };
    for merge in ["a z", "ab", "", " ", "a  b", "c d"] {
        let bytes = texts(&["a b", merge]);
        assert_error(open(&|g| g.set("tokenizer.ggml.merges", 9, &bytes)), &["merge", "unknown tokens"]);
    }
    assert_error(
        open(&|g| g.set("tokenizer.ggml.tokens", 8, &string("a"))),
        &["tokenizer.ggml.tokens", "list of strings"],
    );
    let three = texts(&["a", "b", "c"]);
    assert_error(open(&|g| g.set("tokenizer.ggml.tokens", 9, &three)), &["3 tokens and 8 token types"]);
    assert_error(open(&|g| g.set("tokenizer.ggml.model", 8, &string("llama"))), &["SentencePiece", "no score"]);
}

#[test]
fn a_folders_settings_are_put_together() {
    let config = llama_config(json!({"eos_token_id": 5}));
    let weights = || safetensors_of(&[("model.embed_tokens.weight", "F32", &[8, 4], f32_bytes(&ramp(32)))]);
    let open = |files: &[(&str, String)]| {
        let mut all = vec![("model.safetensors", weights())];
        all.extend(files.iter().map(|(name, text)| (*name, text.clone().into_bytes())));
        ModelFiles::open(llama_folder(&config, &all).path())
    };
    let bare = open(&[]).unwrap().tokenizer;
    assert_eq!(bare.chat_template, None);
    assert_eq!(bare.eos_ids, [5]);
    assert!(!bare.add_bos);

    let settings = json!({
        "bos_token": {"content": "<s>", "lstrip": false},
        "eos_token": "<|im_end|>",
        "add_bos_token": true,
        "chat_template": [
            {"name": "tool_use", "template": "T"},
            {"name": "default", "template": "D"},
        ],
    });
    let whole = open(&[
        ("tokenizer_config.json", settings.to_string()),
        ("special_tokens_map.json", json!({"pad_token": "<pad>"}).to_string()),
        ("generation_config.json", json!({"eos_token_id": [2, 7]}).to_string()),
    ])
    .unwrap()
    .tokenizer;
    assert_eq!(whole.bos_token.as_deref(), Some("<s>"));
    assert_eq!(whole.pad_token.as_deref(), Some("<pad>"));
    assert_eq!(whole.eos_ids, [2, 5, 7]);
    assert_eq!(whole.chat_template.as_deref(), Some("D"));
    // add_bos_token wins over a document that adds none, as in transformers.
    assert!(whole.add_bos && !whole.add_eos);
    assert_eq!(ids(&load(&whole), "a")[0], 0);
    let names: Vec<&str> = whole.extra_files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"]);
    // Copied as they are, not as they were understood.
    assert_eq!(whole.extra_files[0].1, std::fs::read(golden("tokenizer.json")).unwrap());

    let file_wins = open(&[
        ("tokenizer_config.json", json!({"chat_template": "old"}).to_string()),
        ("chat_template.jinja", "new".to_string()),
    ])
    .unwrap();
    assert_eq!(file_wins.tokenizer.chat_template.as_deref(), Some("new"));
    assert_error(open(&[("tokenizer_config.json", "{".into())]), &["tokenizer_config.json", "JSON"]);
    assert_error(open(&[("tokenizer.json", "{".into())]), &["tokenizer.json", "JSON"]);
}
