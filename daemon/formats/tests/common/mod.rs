//! Small hand-made model files, right and wrong.
#![allow(dead_code)]

use serde_json::{Value, json};
use std::path::{Path, PathBuf};

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

pub fn golden_json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

/// A safetensors file of this header and this many bytes of data.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// A safetensors file of tensors that are given as (name, type, shape, bytes).
pub fn safetensors_of(tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, element, shape, bytes) in tensors {
        let begin = data.len();
        data.extend(bytes);
        header.insert(name.to_string(), json!({"dtype": element, "shape": shape, "data_offsets": [begin, data.len()]}));
    }
    safetensors(&Value::Object(header).to_string(), &data)
}

pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Numbers that are all different and exact in every float type.
pub fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i % 97) as f32 / 4.0 - 8.0).collect()
}

/// Config of a one-layer llama, with these changes.
pub fn llama_config(changes: Value) -> Value {
    let mut config = json!({
        "model_type": "llama",
        "vocab_size": 8,
        "hidden_size": 4,
        "intermediate_size": 6,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "tie_word_embeddings": true,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// A folder with a config, a tokenizer and, beside the embedding, these tensors.
pub fn llama_folder(config: &Value, weights: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(golden("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    for (name, bytes) in weights {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

/// Builds a GGUF file byte by byte.
pub struct Gguf {
    pub version: u32,
    values: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
}

impl Gguf {
    pub fn new() -> Gguf {
        Gguf { version: 3, values: Vec::new(), tensors: Vec::new(), data: Vec::new() }
    }

    /// What a one-layer llama needs, its tensors aside.
    pub fn llama() -> Gguf {
        Gguf::decoder("llama")
    }

    /// What a one-layer model of this architecture needs, its tensors aside.
    pub fn decoder(architecture: &str) -> Gguf {
        let mut gguf = Gguf::new();
        gguf.text("general.architecture", architecture);
        for (key, value) in [
            ("context_length", 64),
            ("embedding_length", 4),
            ("block_count", 1),
            ("feed_forward_length", 6),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
        ] {
            gguf.number(&format!("{architecture}.{key}"), value);
        }
        gguf.float(&format!("{architecture}.attention.layer_norm_rms_epsilon"), 1e-5);
        gguf.tokenizer();
        gguf
    }

    /// A byte-level tokenizer of eight tokens.
    pub fn tokenizer(&mut self) {
        self.text("tokenizer.ggml.model", "gpt2");
        self.text("tokenizer.ggml.pre", "gpt-2");
        self.texts("tokenizer.ggml.tokens", &["<|endoftext|>", "a", "b", "c", "ab", "abc", "d", "e"]);
        self.integers("tokenizer.ggml.token_type", &[3, 1, 1, 1, 1, 1, 1, 1]);
        self.texts("tokenizer.ggml.merges", &["a b", "ab c"]);
        self.number("tokenizer.ggml.eos_token_id", 0);
    }

    pub fn raw_value(&mut self, key: &str, kind: u32, bytes: &[u8]) {
        let mut value = string(key);
        value.extend(kind.to_le_bytes());
        value.extend(bytes);
        self.values.push(value);
    }

    pub fn text(&mut self, key: &str, text: &str) {
        self.raw_value(key, 8, &string(text));
    }

    pub fn number(&mut self, key: &str, value: u32) {
        self.raw_value(key, 4, &value.to_le_bytes());
    }

    pub fn float(&mut self, key: &str, value: f32) {
        self.raw_value(key, 6, &value.to_le_bytes());
    }

    pub fn texts(&mut self, key: &str, texts: &[&str]) {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((texts.len() as u64).to_le_bytes());
        bytes.extend(texts.iter().flat_map(|text| string(text)));
        self.raw_value(key, 9, &bytes);
    }

    pub fn integers(&mut self, key: &str, values: &[i32]) {
        let mut bytes = 5u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        self.raw_value(key, 9, &bytes);
    }

    /// Replaces a value.
    pub fn set(&mut self, key: &str, kind: u32, bytes: &[u8]) {
        let start = string(key);
        self.values.retain(|value| !value.starts_with(&start));
        self.raw_value(key, kind, bytes);
    }

    /// Adds a tensor; `shape` is ggml's, fastest dimension first.
    pub fn tensor(&mut self, name: &str, shape: &[u64], kind: u32, bytes: &[u8]) {
        let offset = self.data.len() as u64;
        self.raw_tensor(name, shape, kind, offset);
        self.data.extend(bytes);
        while !self.data.len().is_multiple_of(32) {
            self.data.push(0);
        }
    }

    pub fn raw_tensor(&mut self, name: &str, shape: &[u64], kind: u32, offset: u64) {
        let mut tensor = string(name);
        tensor.extend((shape.len() as u32).to_le_bytes());
        tensor.extend(shape.iter().flat_map(|n| n.to_le_bytes()));
        tensor.extend(kind.to_le_bytes());
        tensor.extend(offset.to_le_bytes());
        self.tensors.push(tensor);
    }

    pub fn embedding(&mut self) {
        self.tensor("token_embd.weight", &[4, 8], 0, &f32_bytes(&ramp(32)));
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.values.len() as u64).to_le_bytes());
        bytes.extend(self.values.iter().flatten());
        bytes.extend(self.tensors.iter().flatten());
        while !bytes.len().is_multiple_of(32) {
            bytes.push(0);
        }
        bytes.extend(&self.data);
        bytes
    }

    /// Writes the file and opens it as a model.
    pub fn open(&self) -> Result<finetuned_formats::ModelFiles, finetuned_formats::FormatError> {
        open_bytes(&self.bytes())
    }
}

pub fn open_bytes(bytes: &[u8]) -> Result<finetuned_formats::ModelFiles, finetuned_formats::FormatError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    // The file stays readable through its open handle.
    finetuned_formats::ModelFiles::open(&path)
}

pub fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// Asserts that something failed with a message that says all of this.
#[track_caller]
pub fn assert_error<T>(result: Result<T, finetuned_formats::FormatError>, says: &[&str]) {
    let Err(error) = result else {
        panic!("it did not fail; expected a message with {says:?}");
    };
    let message = error.to_string();
    for part in says {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}
