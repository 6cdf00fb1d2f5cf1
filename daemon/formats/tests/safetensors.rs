//! Hugging Face folders: single and sharded, the three float types, names with
//! and without prefixes, and files that lie.

mod common;

use common::*;
use finetuned_formats::{
    ElementType, ModelFiles, ModelKind, StoredType, TensorSpec, Values, open_safetensors, read_safetensors_f32,
    write_model_folder, write_safetensors, write_safetensors_to, write_sharded,
};
use half::{bf16, f16};
use serde_json::json;
use std::path::Path;

const EMBEDDING: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";

fn file_with(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

#[test]
fn reads_the_three_float_types() {
    let values = ramp(32);
    let half: Vec<u8> = values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
    let brain: Vec<u8> = values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
    for (name, stored, bytes) in [
        ("F32", StoredType::F32, f32_bytes(&values)),
        ("F16", StoredType::F16, half),
        ("BF16", StoredType::BF16, brain),
    ] {
        let file = safetensors_of(&[(EMBEDDING, name, &[8, 4], bytes)]);
        let folder = llama_folder(&llama_config(json!({})), &[("model.safetensors", file)]);
        let model = ModelFiles::open(folder.path()).unwrap();
        assert_eq!(model.kind, ModelKind::HuggingFace);
        let info = model.tensors.info(EMBEDDING).unwrap();
        assert_eq!((info.shape, info.stored), (vec![8, 4], stored));
        assert_eq!(model.tensors.read_f32(EMBEDDING).unwrap(), values);
        let mut out = vec![0.0; 31];
        assert_error(model.tensors.read_f32_into(EMBEDDING, &mut out), &[EMBEDDING, "32", "31"]);
        assert_error(model.tensors.read_f32("nothing"), &["no tensor", "nothing"]);
        assert!(model.tensors.info("nothing").is_none());
    }
}

#[test]
fn reads_shards_through_the_index() {
    let first = safetensors_of(&[(EMBEDDING, "F32", &[8, 4], f32_bytes(&ramp(32)))]);
    let second = safetensors_of(&[(NORM, "F32", &[4], f32_bytes(&ramp(4)))]);
    let index = json!({"weight_map": {EMBEDDING: "a.safetensors", NORM: "b.safetensors"}});
    let config = llama_config(json!({}));
    let with = |index: &serde_json::Value| {
        llama_folder(
            &config,
            &[
                ("a.safetensors", first.clone()),
                ("b.safetensors", second.clone()),
                ("model.safetensors.index.json", index.to_string().into_bytes()),
            ],
        )
    };
    let folder = with(&index);
    let model = ModelFiles::open(folder.path()).unwrap();
    assert_eq!(model.tensors.names(), [EMBEDDING, NORM]);
    assert_eq!(model.tensors.read_f32(NORM).unwrap(), ramp(4));
    let fingerprint = model.fingerprint().unwrap();

    // Another byte in a shard is another model.
    let changed = safetensors_of(&[(NORM, "F32", &[4], f32_bytes(&[9.0; 4]))]);
    std::fs::write(folder.path().join("b.safetensors"), changed).unwrap();
    let other = ModelFiles::open(folder.path()).unwrap();
    assert_ne!(other.fingerprint().unwrap(), fingerprint);
    assert_eq!(fingerprint.len(), 64);

    for (index, says) in [
        (json!({"weight_map": {EMBEDDING: "a.safetensors", NORM: "c.safetensors"}}), "c.safetensors"),
        (json!({"weight_map": {EMBEDDING: "a.safetensors", NORM: "a.safetensors"}}), "does not"),
        (json!({"weight_map": {EMBEDDING: "../a.safetensors"}}), "no file name"),
        (json!({"weight_map": {EMBEDDING: "/etc/passwd"}}), "no file name"),
        (json!({"weight_map": {EMBEDDING: 7}}), "no file name"),
        (json!({"weight_map": {}}), "empty"),
        (json!({}), "weight_map"),
    ] {
        assert_error(ModelFiles::open(with(&index).path()), &[says]);
    }
    // Several files and no index: nobody says which is which.
    let folder = llama_folder(&config, &[("a.safetensors", first.clone()), ("b.safetensors", second.clone())]);
    assert_error(ModelFiles::open(folder.path()), &["model.safetensors.index.json"]);
}

#[test]
fn finds_tensors_with_and_without_prefixes() {
    let embedding = || ("F32", vec![8usize, 4], f32_bytes(&ramp(32)));
    for prefix in ["", "model.", "language_model.model.", "model.language_model."] {
        let (element, shape, bytes) = embedding();
        let embedding = format!("{prefix}embed_tokens.weight");
        let norm = format!("{prefix}norm.weight");
        let file = safetensors_of(&[
            (&embedding, element, &shape, bytes),
            (&norm, "F32", &[4], f32_bytes(&ramp(4))),
            // Not of the language model, whatever their type.
            ("vision_tower.x", "I64", &[1], vec![0; 8]),
            ("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", &[1], vec![0; 4]),
            // Tied in the config, so not a tensor of its own.
            ("lm_head.weight", "F32", &[8, 4], f32_bytes(&ramp(32))),
        ]);
        let folder = llama_folder(&llama_config(json!({})), &[("model.safetensors", file)]);
        let model = ModelFiles::open(folder.path()).unwrap();
        assert_eq!(model.tensors.names(), [EMBEDDING, NORM], "{prefix:?}");
    }

    let gpt2 = json!({
        "model_type": "gpt2", "vocab_size": 8, "n_embd": 4, "n_head": 2, "n_layer": 1,
    });
    for prefix in ["", "transformer."] {
        let wte = format!("{prefix}wte.weight");
        let mask = format!("{prefix}h.0.attn.bias");
        let bias = format!("{prefix}h.0.attn.c_attn.bias");
        let file = safetensors_of(&[
            (&wte, "F32", &[8, 4], f32_bytes(&ramp(32))),
            (&mask, "U8", &[4], vec![1; 4]),
            (&bias, "F32", &[12], f32_bytes(&ramp(12))),
        ]);
        let folder = llama_folder(&gpt2, &[("model.safetensors", file)]);
        let model = ModelFiles::open(folder.path()).unwrap();
        assert_eq!(model.tensors.names(), ["transformer.h.0.attn.c_attn.bias", "transformer.wte.weight"]);
    }
}

#[test]
fn names_what_a_folder_lacks() {
    let config = llama_config(json!({}));
    let whole = safetensors_of(&[(EMBEDDING, "F32", &[8, 4], f32_bytes(&ramp(32)))]);
    let nowhere = Path::new("/nowhere/at/all");
    assert_error(ModelFiles::open(nowhere), &["/nowhere/at/all", "missing"]);
    let empty = tempfile::tempdir().unwrap();
    assert_error(ModelFiles::open(empty.path()), &["config.json"]);

    assert_error(ModelFiles::open(llama_folder(&config, &[]).path()), &["model.safetensors", "missing"]);
    let pickle = llama_folder(&config, &[("pytorch_model.bin", vec![0; 8])]);
    assert_error(ModelFiles::open(pickle.path()), &["pickle", "convert"]);
    let folder = llama_folder(&config, &[("model.safetensors", whole.clone())]);
    let file = folder.path().join("model.safetensors");
    assert_error(ModelFiles::open(&file), &["give the folder"]);
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert_error(ModelFiles::open(folder.path()), &["tokenizer.json"]);

    // Weights of another model.
    let other = safetensors_of(&[("model.norm.weight", "F32", &[4], f32_bytes(&ramp(4)))]);
    let folder = llama_folder(&config, &[("model.safetensors", other)]);
    assert_error(ModelFiles::open(folder.path()), &[EMBEDDING, "missing"]);
    let wide = llama_config(json!({"hidden_size": 8}));
    let folder = llama_folder(&wide, &[("model.safetensors", whole.clone())]);
    assert_error(ModelFiles::open(folder.path()), &["[8, 4]", "[8, 8]"]);
    let untied = llama_config(json!({"tie_word_embeddings": false}));
    let folder = llama_folder(&untied, &[("model.safetensors", whole)]);
    assert_error(ModelFiles::open(folder.path()), &["lm_head.weight"]);
    let eight = safetensors_of(&[(EMBEDDING, "F8_E4M3", &[8, 4], vec![0; 32])]);
    let folder = llama_folder(&config, &[("model.safetensors", eight)]);
    assert_error(ModelFiles::open(folder.path()), &["F8_E4M3", "BF16"]);
}

/// Cut anywhere, a file is an error that names it, and never a panic.
#[test]
fn a_file_cut_off_anywhere_is_an_error() {
    let whole = safetensors_of(&[("a", "F32", &[3], f32_bytes(&ramp(3))), ("b", "BF16", &[2], vec![0; 4])]);
    let (_folder, path) = file_with(&whole);
    assert!(open_safetensors(&path).is_ok());
    for length in 0..whole.len() {
        let (_folder, path) = file_with(&whole[..length]);
        assert_error(open_safetensors(&path), &["x.safetensors", "damaged"]);
    }
    // And a byte too many is no tensor's.
    let mut longer = whole;
    longer.push(0);
    let (_folder, path) = file_with(&longer);
    assert_error(open_safetensors(&path), &["end at byte 16 of 17"]);
}

#[test]
fn a_header_that_lies_is_an_error() {
    let tensor = |text: &str| format!(r#"{{"a":{text}}}"#);
    for (header, says) in [
        ("{".to_string(), "header"),
        ("[]".to_string(), "header"),
        ("null".to_string(), "header"),
        (tensor(r#"{"dtype":"F32","shape":[2]}"#), "data_offsets"),
        (tensor(r#"{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}"#), "header"),
        (tensor(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#), "begins at 8"),
        (tensor(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,16]}"#), "cut off"),
        (tensor(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]}"#), "cut off"),
        (tensor(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#), "has 8 bytes"),
        (tensor(r#"{"dtype":"F16","shape":[2],"data_offsets":[0,8]}"#), "in F16 has 8 bytes"),
        (tensor(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}"#), "impossible shape"),
        (tensor(r#"{"dtype":"F32","shape":[9223372036854775807],"data_offsets":[0,8]}"#), "has 8 bytes"),
        (tensor(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#), "begins at byte 4"),
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                "a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#
                .to_string(),
            "twice",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                "b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#
                .to_string(),
            "begins at byte 0, expected 8",
        ),
    ] {
        let (_folder, path) = file_with(&safetensors(&header, &[0; 8]));
        assert_error(open_safetensors(&path), &["x.safetensors", "damaged", says]);
    }
    for claimed in [1 << 20, 100_000_001, u64::MAX] {
        let mut bytes = safetensors("{}", &[]);
        bytes[..8].copy_from_slice(&claimed.to_le_bytes());
        let (_folder, path) = file_with(&bytes);
        assert_error(open_safetensors(&path), &["x.safetensors", &claimed.to_string()]);
    }
    let folder = tempfile::tempdir().unwrap();
    assert_error(open_safetensors(folder.path()), &["folder"]);
}

/// What this crate writes, the safetensors library reads, and the other way.
#[test]
fn agrees_with_the_safetensors_library() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let specs = [
        TensorSpec::new("step", &[], ElementType::I64),
        TensorSpec::new("seeds", &[3], ElementType::U32),
        TensorSpec::new("moment", &[2, 3], ElementType::F32),
        TensorSpec::new("brain", &[5], ElementType::BF16),
        TensorSpec::new("half", &[5], ElementType::F16),
        TensorSpec::new("codes", &[3], ElementType::U8),
        TensorSpec::new("empty", &[0, 4], ElementType::F32),
    ];
    let mut bytes = Vec::new();
    let mut order = Vec::new();
    write_safetensors_to(&mut bytes, &path, &specs, |spec, sink| {
        order.push(spec.name.clone());
        match spec.name.as_str() {
            "step" => sink.write(Values::I64(&[-7])),
            "seeds" => sink.write(Values::U32(&[1, 2, u32::MAX])),
            "moment" => {
                sink.write(Values::F32(&ramp(6)[..2]))?;
                sink.write(Values::F32(&ramp(6)[2..]))
            }
            "codes" => sink.write(Values::U8(&[7, 8, 9])),
            "empty" => Ok(()),
            _ => sink.write(Values::F32(&ramp(5))),
        }
    })
    .unwrap();
    // Wide types first, so that every tensor is aligned.
    assert_eq!(order, ["step", "empty", "moment", "seeds", "brain", "half", "codes"]);

    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.tensor("moment").unwrap().data(), f32_bytes(&ramp(6)));
    assert_eq!(theirs.tensor("moment").unwrap().shape(), [2, 3]);
    assert_eq!(theirs.tensor("step").unwrap().data(), (-7i64).to_le_bytes());
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");

    std::fs::write(&path, &bytes).unwrap();
    let ours = open_safetensors(&path).unwrap();
    assert_eq!(ours.read_i64("step").unwrap(), [-7]);
    assert_eq!(ours.read_u32("seeds").unwrap(), [1, 2, u32::MAX]);
    for name in ["brain", "half"] {
        assert_eq!(ours.read_f32(name).unwrap(), ramp(5));
    }
    assert_eq!(ours.read_bytes("codes", &[ElementType::U8]).unwrap(), [7, 8, 9]);
    assert_eq!(ours.metadata()["format"], "pt");
    assert_error(ours.read_u32("step"), &["step", "I64", "U32"]);
    assert_error(ours.read_f32("step"), &["step", "I64"]);

    let written = safetensors::serialize(
        [(
            "w".to_string(),
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2, 2], &f32_bytes(&ramp(4))).unwrap(),
        )],
        None,
    )
    .unwrap();
    std::fs::write(&path, written).unwrap();
    assert_eq!(read_safetensors_f32(&path).unwrap()["w"], (vec![2, 2], ramp(4)));
}

#[test]
fn a_writer_that_breaks_its_promise_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let spec = [TensorSpec::new("w", &[4], ElementType::F32)];
    let write = |specs: &[TensorSpec], values: Values<'_>| {
        let mut out = Vec::new();
        write_safetensors_to(&mut out, &path, specs, |_, sink| sink.write(values))
    };
    assert_error(write(&spec, Values::F32(&ramp(3))), &["w", "4 fewer"]);
    assert_error(write(&spec, Values::F32(&ramp(5))), &["w", "at most 16"]);
    assert_error(write(&spec, Values::U32(&[1; 4])), &["w", "another type"]);
    let twice = [spec[0].clone(), spec[0].clone()];
    assert_error(write(&twice, Values::F32(&ramp(4))), &["a name of its own"]);
    let reserved = [TensorSpec::new("__metadata__", &[1], ElementType::F32)];
    assert_error(write(&reserved, Values::F32(&[0.0])), &["a name of its own"]);
    let endless = [TensorSpec::new("w", &[usize::MAX, 9], ElementType::F32)];
    assert_error(write(&endless, Values::F32(&[])), &["possible shape"]);

    let short = [("w", &[4usize][..], &ramp(3)[..])];
    assert!(write_safetensors(&path, short, ElementType::F32).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let right = [("w", &[4usize][..], &ramp(4)[..])];
    write_safetensors(&path, right, ElementType::BF16).unwrap();
    assert_eq!(open_safetensors(&path).unwrap().element("w"), Some(ElementType::BF16));
}

/// A fine-tuned model's folder opens again as the same model, in one file or several.
#[test]
fn writes_a_folder_that_opens_again() {
    let source = llama_folder(
        &llama_config(json!({"torch_dtype": "float16"})),
        &[(
            "model.safetensors",
            safetensors_of(&[
                (EMBEDDING, "F32", &[8, 4], f32_bytes(&ramp(32))),
                (NORM, "F32", &[4], f32_bytes(&ramp(4))),
            ]),
        )],
    );
    let model = ModelFiles::open(source.path()).unwrap();
    let specs: Vec<TensorSpec> = model
        .tensors
        .names()
        .into_iter()
        .map(|name| {
            let shape = model.tensors.info(&name).unwrap().shape;
            TensorSpec::new(name, &shape, ElementType::BF16)
        })
        .collect();
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("tuned");
    // The second run replaces the first's folder.
    for limit in [u64::MAX, 70] {
        write_sharded(&out, &model.config.raw, &model.tokenizer.extra_files, &specs, limit, |spec, sink| {
            sink.write(Values::F32(&model.tensors.read_f32(&spec.name)?))
        })
        .unwrap();
        let again = ModelFiles::open(&out).unwrap();
        assert_eq!(again.tensors.read_f32(EMBEDDING).unwrap(), ramp(32));
        assert_eq!(again.tensors.read_f32(NORM).unwrap(), ramp(4));
        assert_eq!(again.tokenizer.json, model.tokenizer.json);
        assert_eq!(again.config.raw["dtype"], "bfloat16");
        assert_eq!(again.config.raw["torch_dtype"], "bfloat16");
        let index = out.join("model.safetensors.index.json");
        assert_eq!(index.is_file(), limit == 70);
        assert_eq!(out.join("model.safetensors").is_file(), limit != 70);
    }
    assert!(out.join("model-00002-of-00002.safetensors").is_file());
    assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1);

    let failed = parent.path().join("failed");
    let result = write_model_folder(&failed, &model.config.raw, &[], &specs, |_, _| Ok(()));
    assert_error(result, &["fewer"]);
    assert!(!failed.exists());
}
