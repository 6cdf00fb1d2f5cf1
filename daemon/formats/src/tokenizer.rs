//! What a tokenizer is made from: a `tokenizer.json` document, the chat
//! template and the special tokens, from a folder's files or from a GGUF file.

use crate::config::ModelConfig;
use crate::error::FormatError;
use crate::files;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Files that a full fine-tune copies to its output beside the weights.
const COPIED: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
];

/// A tokenizer's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerSource {
    /// A `tokenizer.json` document, for Hugging Face's tokenizers library. Its
    /// post-processor adds the tokens that `add_bos` and `add_eos` say.
    pub json: String,
    /// Jinja, as models ship it.
    pub chat_template: Option<String>,
    /// Text of the beginning-of-sequence token.
    pub bos_token: Option<String>,
    /// Text of the end-of-sequence token.
    pub eos_token: Option<String>,
    /// Text of the padding token.
    pub pad_token: Option<String>,
    /// Text of the unknown token.
    pub unk_token: Option<String>,
    /// Encoding with special tokens puts the BOS token first.
    pub add_bos: bool,
    /// Encoding with special tokens puts the EOS token last.
    pub add_eos: bool,
    /// Ids at which generation stops: of generation_config.json, config.json
    /// and the tokenizer, together, ascending.
    pub eos_ids: Vec<u32>,
    /// Name and content of the files that a full fine-tune copies to its
    /// output folder, read or synthesised.
    pub extra_files: Vec<(String, Vec<u8>)>,
}

impl TokenizerSource {
    /// Reads the tokenizer of a Hugging Face folder.
    pub(crate) fn from_folder(folder: &Path, config: &ModelConfig) -> Result<TokenizerSource, FormatError> {
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            return Err(FormatError::missing(
                folder,
                "tokenizer.json",
                "load and save the tokenizer once with transformers' AutoTokenizer, which writes it",
            ));
        }
        let text = files::read_text(&path)?;
        let mut document: Value = serde_json::from_str(&text)
            .map_err(|e| FormatError::damaged(&path, format!("it is not valid JSON: {e}")))?;
        let settings_path = folder.join("tokenizer_config.json");
        let settings = files::read_json_if_there(&settings_path)?.unwrap_or_else(|| json!({}));
        let map = files::read_json_if_there(&folder.join("special_tokens_map.json"))?.unwrap_or_else(|| json!({}));
        let generation =
            files::read_json_if_there(&folder.join("generation_config.json"))?.unwrap_or_else(|| json!({}));

        let special = |key: &str| token_text(&settings[key]).or_else(|| token_text(&map[key]));
        let bos_token = special("bos_token");
        let eos_token = special("eos_token");

        let mut json = text;
        if let Some(changed) = follow_settings(&document, &settings, &bos_token, &eos_token) {
            document["post_processor"] = changed;
            json = document.to_string();
        }
        let (add_bos, add_eos) = adds(&document, bos_token.as_deref(), eos_token.as_deref());

        let mut eos_ids: BTreeSet<u32> = config.eos_tokens.iter().copied().collect();
        eos_ids.extend(ids(&generation["eos_token_id"]));
        eos_ids.extend(eos_token.as_deref().and_then(|text| id_of(&document, text)));

        let mut extra_files = Vec::new();
        for name in COPIED {
            let path = folder.join(name);
            if path.is_file() {
                extra_files.push((name.to_string(), files::read_bytes(&path)?));
            }
        }
        Ok(TokenizerSource {
            json,
            chat_template: chat_template(folder, &settings)?,
            bos_token,
            eos_token,
            pad_token: special("pad_token"),
            unk_token: special("unk_token"),
            add_bos,
            add_eos,
            eos_ids: eos_ids.into_iter().collect(),
            extra_files,
        })
    }

    /// The files of a Hugging Face folder that say what this says.
    pub(crate) fn synthesised_files(&self, max_positions: usize) -> Vec<(String, Vec<u8>)> {
        let mut settings = Map::new();
        for (key, token) in [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("pad_token", &self.pad_token),
            ("unk_token", &self.unk_token),
        ] {
            if let Some(token) = token {
                settings.insert(key.into(), json!(token));
            }
        }
        settings.insert("clean_up_tokenization_spaces".into(), json!(false));
        settings.insert("model_max_length".into(), json!(max_positions));
        settings.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        let document: Value = serde_json::from_str(&self.json).unwrap_or_default();
        let id = |token: &Option<String>| token.as_deref().and_then(|text| id_of(&document, text));
        let mut generation = Map::new();
        generation.insert("_from_model_config".into(), json!(true));
        if let Some(id) = id(&self.bos_token) {
            generation.insert("bos_token_id".into(), json!(id));
        }
        generation.insert("eos_token_id".into(), json!(self.eos_ids));
        if let Some(id) = id(&self.pad_token) {
            generation.insert("pad_token_id".into(), json!(id));
        }
        let pretty = |map: Map<String, Value>| {
            let mut text = format!("{:#}", Value::Object(map));
            text.push('\n');
            text.into_bytes()
        };
        let mut files = vec![
            ("tokenizer.json".to_string(), self.json.clone().into_bytes()),
            ("tokenizer_config.json".to_string(), pretty(settings)),
            ("generation_config.json".to_string(), pretty(generation)),
        ];
        if let Some(template) = &self.chat_template {
            files.push(("chat_template.jinja".to_string(), template.clone().into_bytes()));
        }
        files
    }
}

/// A post-processor that adds tokens before and after the text, or `null`.
pub(crate) fn with_bos_and_eos(bos: Option<(u32, &str)>, eos: Option<(u32, &str)>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let token = |text: &str, kind: u32| json!({"SpecialToken": {"id": text, "type_id": kind}});
    let mut single = Vec::new();
    let mut pair = Vec::new();
    for (kind, sequence) in [(0, "A"), (1, "B")] {
        let mut part = Vec::new();
        part.extend(bos.map(|(_, text)| token(text, kind)));
        part.push(json!({"Sequence": {"id": sequence, "type_id": kind}}));
        part.extend(eos.map(|(_, text)| token(text, kind)));
        if kind == 0 {
            single.clone_from(&part);
        }
        pair.extend(part);
    }
    let mut tokens = Map::new();
    for (id, text) in bos.into_iter().chain(eos) {
        tokens.insert(text.to_string(), json!({"id": text, "ids": [id], "tokens": [text]}));
    }
    json!({
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": tokens,
    })
}

/// transformers rebuilds the post-processor where tokenizer_config.json says
/// `add_bos_token` or `add_eos_token`, so the document alone may be wrong.
/// Returns the new post-processor if it differs.
fn follow_settings(document: &Value, settings: &Value, bos: &Option<String>, eos: &Option<String>) -> Option<Value> {
    let wants_bos = settings["add_bos_token"].as_bool();
    let wants_eos = settings["add_eos_token"].as_bool();
    if wants_bos.is_none() && wants_eos.is_none() {
        return None;
    }
    let (has_bos, has_eos) = adds(document, bos.as_deref(), eos.as_deref());
    let bos = bos.as_deref().filter(|_| wants_bos.unwrap_or(has_bos));
    let eos = eos.as_deref().filter(|_| wants_eos.unwrap_or(has_eos));
    if bos.is_some() == has_bos && eos.is_some() == has_eos {
        return None;
    }
    let bos = bos.and_then(|text| Some((id_of(document, text)?, text)));
    let eos = eos.and_then(|text| Some((id_of(document, text)?, text)));
    Some(with_bos_and_eos(bos, eos))
}

/// Whether the post-processor puts the BOS token first and the EOS token last.
fn adds(document: &Value, bos: Option<&str>, eos: Option<&str>) -> (bool, bool) {
    fn template(processor: &Value) -> Option<&Vec<Value>> {
        match processor["type"].as_str()? {
            "TemplateProcessing" => processor["single"].as_array(),
            "Sequence" => processor["processors"].as_array()?.iter().find_map(template),
            _ => None,
        }
    }
    let Some(single) = template(&document["post_processor"]) else {
        return (false, false);
    };
    let is = |part: Option<&Value>, text: Option<&str>| {
        let found = part.and_then(|part| part["SpecialToken"]["id"].as_str());
        text.is_some() && found == text
    };
    (is(single.first(), bos), is(single.last(), eos))
}

/// A token's id in a tokenizer.json document.
fn id_of(document: &Value, text: &str) -> Option<u32> {
    let added = document["added_tokens"]
        .as_array()
        .and_then(|tokens| tokens.iter().find(|token| token["content"] == text).and_then(|token| token["id"].as_u64()));
    let id = added.or_else(|| document["model"]["vocab"][text].as_u64())?;
    u32::try_from(id).ok()
}

/// Special tokens are strings, or objects with their content.
fn token_text(value: &Value) -> Option<String> {
    let text = match value {
        Value::Object(token) => token.get("content")?.as_str()?,
        value => value.as_str()?,
    };
    Some(text.to_string())
}

fn ids(value: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(one).collect(),
        value => one(value).into_iter().collect(),
    }
}

/// A file of its own wins over tokenizer_config.json, where several named
/// templates may stand; "default" is the one for chats.
fn chat_template(folder: &Path, settings: &Value) -> Result<Option<String>, FormatError> {
    let path = folder.join("chat_template.jinja");
    if path.is_file() {
        return files::read_text(&path).map(Some);
    }
    if let Some(text) = settings["chat_template"].as_str() {
        return Ok(Some(text.to_string()));
    }
    if let Some(list) = settings["chat_template"].as_array() {
        let default = list.iter().find(|entry| entry["name"] == "default");
        let text = default.and_then(|entry| entry["template"].as_str());
        return Ok(text.map(str::to_string));
    }
    let processor = files::read_json_if_there(&folder.join("chat_template.json"))?;
    Ok(processor.and_then(|json| json["chat_template"].as_str().map(str::to_string)))
}
