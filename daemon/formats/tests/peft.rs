//! Adapters: PEFT's own files read and written back byte for byte, its rules
//! for ranks and targets, and what is refused by name.

mod common;

use common::{assert_error, golden, golden_json, ramp};
use finetuned_formats::durable::DirectoryWriter;
use finetuned_formats::{
    ElementType, FormatError, PeftAdapter, PeftConfig, TargetModules, VALUE_HEAD, read_peft, read_safetensors_f32,
    write_peft, write_safetensors,
};
use serde_json::{Value, json};
use std::path::Path;

fn parse(changes: Value) -> Result<PeftConfig, FormatError> {
    let mut raw = golden_json("peft/lora/adapter_config.json");
    for (key, value) in changes.as_object().unwrap() {
        raw[key] = value.clone();
    }
    PeftConfig::from_json(&raw, Path::new("adapter_config.json"))
}

#[test]
fn reads_pefts_adapters_and_writes_them_back() {
    for name in ["lora", "rslora", "dora", "gpt2"] {
        let folder = golden("peft").join(name);
        let adapter = read_peft(&folder).unwrap();
        assert_eq!((adapter.config.rank, adapter.config.alpha), (4, 8.0));
        assert_eq!(adapter.config.rslora, name == "rslora");
        assert_eq!(adapter.config.dora, name == "dora");
        assert_eq!(adapter.config.fan_in_fan_out, name == "gpt2");
        assert_eq!(adapter.modules().len(), if name == "gpt2" { 8 } else { 14 });

        let out = tempfile::tempdir().unwrap();
        let plain = out.path().join("plain");
        write_peft(&plain, &adapter).unwrap();
        let mut writer = DirectoryWriter::create(&out.path().join("whole")).unwrap();
        adapter.write_into(&mut writer).unwrap();
        writer.finish_bare().unwrap();
        for written in [plain, out.path().join("whole")] {
            for file in ["adapter_config.json", "adapter_model.safetensors"] {
                let ours = std::fs::read(written.join(file)).unwrap();
                let theirs = std::fs::read(folder.join(file)).unwrap();
                if file.ends_with("json") {
                    let ours = String::from_utf8(ours).unwrap();
                    assert_eq!(ours, String::from_utf8(theirs).unwrap(), "{name}");
                } else {
                    assert_eq!(ours, theirs, "{name} {file}");
                }
            }
            assert_eq!(std::fs::read_dir(&written).unwrap().count(), 2);
            assert_eq!(read_peft(&written).unwrap(), adapter);
        }
    }
}

#[test]
fn keys_are_pefts() {
    let dora = read_peft(&golden("peft/dora")).unwrap();
    let module = "model.layers.1.mlp.up_proj";
    for (part, shape) in
        [("lora_A.weight", vec![4, 64]), ("lora_B.weight", vec![128, 4]), ("lora_magnitude_vector", vec![128])]
    {
        assert_eq!(dora.tensors[&PeftAdapter::key(module, part)].0, shape);
    }
    assert!(dora.modules().contains(&module));
    let gpt2 = read_peft(&golden("peft/gpt2")).unwrap();
    assert_eq!(gpt2.modules()[0], "transformer.h.0.attn.c_attn");
}

#[test]
fn ranks_alphas_and_scales_follow_the_patterns() {
    let config = parse(json!({
        "r": 16, "lora_alpha": 32,
        "rank_pattern": {"q_proj": 4, "layers.1.mlp.up_proj": 2, ".*k_proj": 8},
        "alpha_pattern": {"model.layers.0.self_attn.q_proj": 1.5},
    }))
    .unwrap();
    let q = "model.layers.0.self_attn.q_proj";
    assert_eq!(config.rank_of(q), 4);
    assert_eq!(config.alpha_of(q), 1.5);
    assert_eq!(config.scale_of(q), 0.375);
    assert_eq!(config.rank_of("model.layers.1.mlp.up_proj"), 2);
    assert_eq!(config.rank_of("model.layers.11.mlp.up_proj"), 16);
    assert_eq!(config.rank_of("model.layers.0.self_attn.k_proj"), 8);
    // A pattern is the end of a path, not of a word.
    assert_eq!(config.rank_of("model.layers.0.self_attn.xq_proj"), 16);
    assert_eq!(config.scale_of("model.layers.0.mlp.down_proj"), 2.0);
    let text = format!("{:#}", config.to_json());
    assert!(text.contains("\"rank_pattern\": {\n    \".*k_proj\": 8,"), "{text}");
    assert!(text.contains("\"model.layers.0.self_attn.q_proj\": 1.5"), "{text}");
    let again = PeftConfig::from_json(&config.to_json(), Path::new("x")).unwrap();
    assert_eq!(again.to_json(), config.to_json());

    let rslora = parse(json!({"r": 16, "lora_alpha": 32, "use_rslora": true})).unwrap();
    assert_eq!(rslora.scale_of(q), 8.0);
}

#[test]
fn targets_are_matched_as_peft_does() {
    let q = "model.layers.3.self_attn.q_proj";
    let hit = |changes: Value| parse(changes).unwrap().targets(q);
    assert!(hit(json!({"target_modules": ["q_proj"]})));
    assert!(hit(json!({"target_modules": ["self_attn.q_proj"]})));
    assert!(hit(json!({"target_modules": [q]})));
    assert!(!hit(json!({"target_modules": ["proj", "attn.q_proj"]})));
    assert!(hit(json!({"target_modules": r".*\.(q|v)_proj"})));
    assert!(!hit(json!({"target_modules": "q_proj"})));
    assert!(!hit(json!({"target_modules": r".*layers\.3"})));
    assert!(hit(json!({"target_modules": "all-linear"})));
    assert!(!parse(json!({"target_modules": "all-linear"})).unwrap().targets("lm_head"));

    assert!(!hit(json!({"exclude_modules": ["q_proj"]})));
    assert!(!hit(json!({"exclude_modules": r".*layers\.3\..*"})));
    assert!(hit(json!({"exclude_modules": ["k_proj"]})));
    assert!(hit(json!({"layers_to_transform": 3})));
    assert!(hit(json!({"layers_to_transform": [1, 3]})));
    assert!(!hit(json!({"layers_to_transform": [1, 2]})));
    assert!(hit(json!({"layers_to_transform": [3], "layers_pattern": "layers"})));
    assert!(!hit(json!({"layers_to_transform": [3], "layers_pattern": ["h", "blocks"]})));
    // Named in full, a module is meant whatever its layer.
    assert!(hit(json!({"layers_to_transform": [1], "target_modules": [q]})));
}

#[test]
fn what_changes_the_maths_is_refused_by_name() {
    for (key, value) in [
        ("modules_to_save", json!(["lm_head"])),
        ("modules_to_save", json!(["score", "lm_head"])),
        ("modules_to_save", json!("score")),
        ("use_qalora", json!(true)),
        ("lora_bias", json!(true)),
        ("target_parameters", json!(["mlp.experts.gate_up_proj"])),
        ("trainable_token_indices", json!([1, 2])),
        ("layer_replication", json!([[0, 4], [2, 5]])),
        ("alora_invocation_tokens", json!([7])),
        ("arrow_config", json!({"top_k": 3})),
        ("kasa_config", json!({"beta": 1e-4})),
        ("use_bdlora", json!({"nblocks": 2})),
        ("velora_config", json!({"rank": 1})),
        ("megatron_config", json!({"x": 1})),
        ("ensure_weight_tying", json!(true)),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("loftq")),
        ("init_lora_weights", json!("corda")),
        ("bias", json!("lora_only")),
        ("bias", json!("all")),
        ("something_of_next_year", json!(true)),
    ] {
        let named = key.to_string();
        assert_error(parse(json!({named: value})), &["adapter_config.json", key, "not supported"]);
    }
    for idle in [json!(null), json!(false), json!([]), json!({}), json!("")] {
        assert!(parse(json!({"something_of_next_year": idle})).is_ok());
    }
    for init in [json!(true), json!(false), json!("gaussian"), json!("eva")] {
        let config = parse(json!({"init_lora_weights": init})).unwrap();
        assert_eq!(config.to_json()["init_lora_weights"], init);
    }
    assert_error(parse(json!({"peft_type": "IA3"})), &["IA3", "LoRA"]);
    assert_error(parse(json!({"peft_type": null})), &["unknown"]);
    assert_error(parse(json!({"target_modules": null})), &["target_modules", "missing"]);
    assert_error(parse(json!({"target_modules": "(?<!x)q"})), &["(?<!x)q", "by name"]);
    assert_error(parse(json!({"target_modules": [1]})), &["target_modules"]);
    assert_error(parse(json!({"rank_pattern": {"(": 1}})), &["\"(\""]);
    assert_error(parse(json!({"r": 0})), &["r is 0"]);
    assert_error(parse(json!({"rank_pattern": {"q_proj": 0}})), &["rank"]);
    assert_error(parse(json!({"lora_dropout": 1.0})), &["lora_dropout"]);
    assert_error(parse(json!({"lora_alpha": "big"})), &["lora_alpha"]);
}

#[test]
fn tensors_that_do_not_fit_the_settings_are_errors() {
    let good = read_peft(&golden("peft/lora")).unwrap();
    let with = |change: &dyn Fn(&mut PeftAdapter)| {
        let mut adapter = good.clone();
        change(&mut adapter);
        let folder = tempfile::tempdir().unwrap();
        // Written past the check, read with it.
        let tensors =
            adapter.tensors.iter().map(|(name, (shape, data))| (name.as_str(), shape.as_slice(), data.as_slice()));
        let weights = folder.path().join("adapter_model.safetensors");
        write_safetensors(&weights, tensors, ElementType::F32).unwrap();
        std::fs::write(folder.path().join("adapter_config.json"), adapter.config.to_json().to_string()).unwrap();
        let read = read_peft(folder.path());
        let out = folder.path().join("out");
        assert_eq!(write_peft(&out, &adapter).is_err(), read.is_err());
        read
    };
    let q = "model.layers.0.self_attn.q_proj";
    let a = PeftAdapter::key(q, "lora_A.weight");
    let magnitude = PeftAdapter::key(q, "lora_magnitude_vector");
    assert!(with(&|_| {}).is_ok());
    assert_error(with(&|x| drop(x.tensors.remove(&a))), &[q, "lacks"]);
    assert_error(with(&|x| x.config.rank = 8), &["rank 8"]);
    assert_error(with(&|x| x.config.rank_pattern.push(("q_proj".into(), 2))), &[q, "rank 2"]);
    assert_error(with(&|x| x.config.dora = true), &["lora_magnitude_vector of"]);
    assert_error(with(&|x| drop(x.tensors.insert(magnitude.clone(), (vec![64], ramp(64))))), &["use_dora is false"]);
    for key in [
        "base_model.model.lm_head.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
    ] {
        assert_error(with(&|x| drop(x.tensors.insert(key.into(), (vec![4, 1], ramp(4))))), &[key, "not supported"]);
    }
    assert_error(with(&|x| x.tensors.clear()), &["no adapter tensors"]);
    let mut short = good.clone();
    short.tensors.insert(a, (vec![4, 64], ramp(3)));
    let folder = tempfile::tempdir().unwrap();
    assert_error(write_peft(folder.path(), &short), &["3 elements"]);
}

#[test]
fn a_reward_models_value_head_lies_beside_the_adapters() {
    // What PEFT makes of it for SEQ_CLS, once trained anew and once loaded again.
    for written in [json!(["classifier", "score"]), json!(["score", "classifier", "score"]), json!(["score"])] {
        assert!(parse(json!({"modules_to_save": written, "task_type": "SEQ_CLS"})).unwrap().value_head);
    }
    let mut adapter = read_peft(&golden("peft/lora")).unwrap();
    assert!(!adapter.config.value_head);
    adapter.config.value_head = true;
    adapter.config.task_type = Some("SEQ_CLS".into());
    let folder = tempfile::tempdir().unwrap();
    assert_error(write_peft(folder.path(), &adapter), &["value head", VALUE_HEAD]);
    adapter.tensors.insert(VALUE_HEAD.into(), (vec![1, 64], ramp(64)));
    write_peft(folder.path(), &adapter).unwrap();
    let config: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["modules_to_save"], &config["task_type"]), (&json!(["score"]), &json!("SEQ_CLS")));
    let again = read_peft(folder.path()).unwrap();
    assert_eq!(again, adapter);
    assert_eq!(again.modules().len(), 14);

    adapter.tensors.insert(VALUE_HEAD.into(), (vec![3, 64], ramp(192)));
    assert_error(write_peft(folder.path(), &adapter), &["3 labels", "one output"]);
    adapter.tensors.insert(VALUE_HEAD.into(), (vec![64], ramp(64)));
    assert_error(write_peft(folder.path(), &adapter), &["[64]", "[1, hidden]"]);
    adapter.tensors.insert(VALUE_HEAD.into(), (vec![1, 64], ramp(64)));
    adapter.config.value_head = false;
    assert_error(write_peft(folder.path(), &adapter), &[VALUE_HEAD, "modules_to_save"]);
}

#[test]
fn names_what_an_adapter_folder_lacks() {
    let folder = tempfile::tempdir().unwrap();
    assert_error(read_peft(folder.path()), &["adapter_config.json", "missing"]);
    let config = golden("peft/lora/adapter_config.json");
    std::fs::copy(config, folder.path().join("adapter_config.json")).unwrap();
    assert_error(read_peft(folder.path()), &["adapter_model.safetensors", "missing"]);
    std::fs::write(folder.path().join("adapter_model.bin"), b"x").unwrap();
    assert_error(read_peft(folder.path()), &["pickle"]);
    std::fs::write(folder.path().join("adapter_config.json"), "[]").unwrap();
    assert_error(read_peft(folder.path()), &["adapter_config.json", "object"]);
}

/// PEFT before 0.11 spelled the magnitude as a module's weight.
#[test]
fn reads_the_old_spelling_of_the_magnitude() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(golden("peft/dora/adapter_config.json"), folder.path().join("adapter_config.json")).unwrap();
    let tensors = read_safetensors_f32(&golden("peft/dora/adapter_model.safetensors")).unwrap();
    let renamed: Vec<(String, Vec<usize>, Vec<f32>)> = tensors
        .into_iter()
        .map(|(name, (shape, data))| {
            let old = name.replace("magnitude_vector", "magnitude_vector.weight");
            (old, shape, data)
        })
        .collect();
    let views = renamed.iter().map(|(name, shape, data)| (name.as_str(), shape.as_slice(), data.as_slice()));
    let path = folder.path().join("adapter_model.safetensors");
    write_safetensors(&path, views, ElementType::F32).unwrap();
    assert_eq!(read_peft(folder.path()).unwrap(), read_peft(&golden("peft/dora")).unwrap());
}

#[test]
fn all_linear_is_the_default_target() {
    let config = PeftConfig::default();
    assert_eq!(config.targets, TargetModules::AllLinear);
    assert_eq!(config.to_json()["target_modules"], "all-linear");
    let again = PeftConfig::from_json(&config.to_json(), Path::new("x")).unwrap();
    assert_eq!(again, config);
}
