//! A tokenizer from GGUF metadata, as the `tokenizer.json` that Hugging Face's
//! library loads.
//!
//! # Source
//! llama.cpp, `src/llama-vocab.cpp`; transformers,
//! `integrations/gguf/gguf_tokenizer_mapping.py` and `convert_slow_tokenizer.py`.

mod byte_level;
mod pre;
mod sentencepiece;

use super::container::GgufFile;
use crate::config::ModelConfig;
use crate::error::FormatError;
use crate::tokenizer::{TokenizerSource, with_bos_and_eos};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Texts of tokens that end a turn, in the models that llama.cpp runs.
/// Generation stops at them even if the file's `eos_token_id` is another.
const END_OF_TURN: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
];

/// What a token is, by llama.cpp's codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// The vocabulary as the file has it.
struct Vocabulary<'a> {
    file: &'a GgufFile,
    tokens: &'a [String],
    kinds: Vec<Kind>,
    bos: Option<u32>,
    eos: Option<u32>,
    unk: Option<u32>,
    pad: Option<u32>,
    add_bos: bool,
    add_eos: bool,
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a GgufFile, sentencepiece: bool) -> Result<Vocabulary<'a>, FormatError> {
        let tokens = file.texts("tokenizer.ggml.tokens")?.ok_or_else(|| {
            FormatError::missing(
                &file.path,
                "the metadata \"tokenizer.ggml.tokens\"",
                "the file holds no tokenizer: use the model's Hugging Face folder",
            )
        })?;
        if u32::try_from(tokens.len()).is_err() {
            return Err(FormatError::damaged(&file.path, "it has too many tokens"));
        }
        let kinds = match file.integers("tokenizer.ggml.token_type")? {
            None => vec![Kind::Normal; tokens.len()],
            Some(codes) if codes.len() == tokens.len() => codes
                .iter()
                .map(|code| match code {
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    5 => Kind::Unused,
                    6 => Kind::Byte,
                    _ => Kind::Normal,
                })
                .collect(),
            Some(codes) => {
                return Err(FormatError::damaged(
                    &file.path,
                    format!("it has {} tokens and {} token types", tokens.len(), codes.len()),
                ));
            }
        };
        let id = |key: &str, default: Option<u32>| -> Result<Option<u32>, FormatError> {
            let key = format!("tokenizer.ggml.{key}_token_id");
            let given = file.token(&key)?;
            match given {
                Some(id) if id as usize >= tokens.len() => Err(FormatError::setting(
                    &file.path,
                    key,
                    format!("one of the {} tokens", tokens.len()),
                    id.to_string(),
                )),
                Some(id) => Ok(Some(id)),
                None => Ok(default.filter(|id| (*id as usize) < tokens.len())),
            }
        };
        // llama.cpp's defaults for a SentencePiece vocabulary.
        let default = |id| sentencepiece.then_some(id);
        Ok(Vocabulary {
            file,
            tokens,
            kinds,
            bos: id("bos", default(1))?,
            eos: id("eos", default(2))?,
            unk: id("unknown", default(0))?,
            pad: id("padding", None)?,
            add_bos: file.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(sentencepiece),
            add_eos: file.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
        })
    }

    fn text(&self, id: Option<u32>) -> Option<String> {
        id.map(|id| self.tokens[id as usize].clone())
    }

    /// Ids of the tokens at which generation stops.
    fn end_ids(&self) -> Result<Vec<u32>, FormatError> {
        let mut ids: BTreeSet<u32> = self.eos.into_iter().collect();
        for key in ["eot", "eom"] {
            let id = self.file.token(&format!("tokenizer.ggml.{key}_token_id"))?;
            ids.extend(id.filter(|id| (*id as usize) < self.tokens.len()));
        }
        for (id, (text, kind)) in self.tokens.iter().zip(&self.kinds).enumerate() {
            if matches!(kind, Kind::Control | Kind::UserDefined) && END_OF_TURN.contains(&text.as_str()) {
                ids.insert(id as u32);
            }
        }
        Ok(ids.into_iter().collect())
    }
}

/// One entry of `added_tokens`.
fn added_token(id: usize, content: &str, special: bool, rstrip: bool) -> Value {
    json!({
        "id": id,
        "content": content,
        "single_word": false,
        "lstrip": false,
        "rstrip": rstrip,
        "normalized": false,
        "special": special,
    })
}

/// The parts of a `tokenizer.json` that the two families fill differently.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Map<String, Value>,
    added_tokens: Vec<Value>,
}

pub(crate) fn read_tokenizer(file: &GgufFile, config: &ModelConfig) -> Result<TokenizerSource, FormatError> {
    let model = file.text("tokenizer.ggml.model")?.ok_or_else(|| {
        FormatError::missing(
            &file.path,
            "the metadata \"tokenizer.ggml.model\"",
            "the file holds no tokenizer: use the model's Hugging Face folder",
        )
    })?;
    let (vocabulary, parts) = match model {
        "gpt2" => {
            let mut vocabulary = Vocabulary::read(file, false)?;
            let parts = byte_level::build(&mut vocabulary)?;
            (vocabulary, parts)
        }
        "llama" => {
            let vocabulary = Vocabulary::read(file, true)?;
            let parts = sentencepiece::build(&vocabulary, config.family)?;
            (vocabulary, parts)
        }
        other => {
            return Err(FormatError::unsupported(
                &file.path,
                format!("a tokenizer of type {other:?}"),
                "use the model's Hugging Face folder",
            ));
        }
    };
    let bos_token = vocabulary.text(vocabulary.bos);
    let eos_token = vocabulary.text(vocabulary.eos);
    let add_bos = vocabulary.add_bos && bos_token.is_some();
    let add_eos = vocabulary.add_eos && eos_token.is_some();
    let bos = vocabulary.bos.zip(bos_token.as_deref()).filter(|_| add_bos);
    let eos = vocabulary.eos.zip(eos_token.as_deref()).filter(|_| add_eos);
    let document = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": parts.added_tokens,
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": with_bos_and_eos(bos, eos),
        "decoder": parts.decoder,
        "model": parts.model,
    });
    let mut source = TokenizerSource {
        json: document.to_string(),
        chat_template: file.text("tokenizer.chat_template")?.map(str::to_string),
        bos_token,
        eos_token,
        pad_token: vocabulary.text(vocabulary.pad),
        unk_token: vocabulary.text(vocabulary.unk),
        add_bos,
        add_eos,
        eos_ids: vocabulary.end_ids()?,
        extra_files: Vec::new(),
    };
    source.extra_files = source.synthesised_files(config.max_positions);
    Ok(source)
}
