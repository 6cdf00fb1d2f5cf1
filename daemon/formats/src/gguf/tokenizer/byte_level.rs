//! Byte-level BPE vocabularies (`tokenizer.ggml.model` = "gpt2").

use super::pre;
use super::{Kind, Parts, Vocabulary, added_token};
use crate::error::FormatError;
use serde_json::{Map, Value, json};

pub(super) fn build(vocabulary: &mut Vocabulary<'_>) -> Result<Parts, FormatError> {
    let file = vocabulary.file;
    let name = file.text("tokenizer.ggml.pre")?.unwrap_or("default");
    // Guessing here would train on other tokens than the model knows.
    let scheme = pre::scheme(name).ok_or_else(|| {
        FormatError::unsupported(
            &file.path,
            format!("the pre-tokenizer {name:?}"),
            "use the model's Hugging Face folder, which brings its tokenizer.json",
        )
    })?;
    if file.flag("tokenizer.ggml.add_bos_token")?.is_none() {
        vocabulary.add_bos = scheme.add_bos;
    }

    let mut vocab = Map::new();
    let mut added_tokens = Vec::new();
    for (id, (token, kind)) in vocabulary.tokens.iter().zip(&vocabulary.kinds).enumerate() {
        match kind {
            // Fillers up to the embedding's rows, "[PAD151936]": no text
            // becomes one, and as words they would shadow real text.
            Kind::Unused => continue,
            Kind::Control | Kind::Unknown => added_tokens.push(added_token(id, token, true, false)),
            Kind::UserDefined => added_tokens.push(added_token(id, token, false, false)),
            _ => {}
        }
        if !vocab.contains_key(token) {
            vocab.insert(token.clone(), json!(id));
        }
    }

    let stored = file.texts("tokenizer.ggml.merges")?.ok_or_else(|| {
        FormatError::missing(
            &file.path,
            "the metadata \"tokenizer.ggml.merges\"",
            "convert the model again with a current llama.cpp",
        )
    })?;
    let mut merges = Vec::with_capacity(stored.len());
    for merge in stored {
        // A left part may itself be a space in vocabularies that are not
        // byte-level throughout, so the first character is not a separator.
        let first = merge.chars().next().map_or(0, char::len_utf8);
        let pair = merge[first..].find(' ').map(|at| {
            let at = at + first;
            (&merge[..at], &merge[at + 1..])
        });
        let known = pair.is_some_and(|(left, right)| {
            vocab.contains_key(left) && vocab.contains_key(right) && vocab.contains_key(&format!("{left}{right}"))
        });
        match pair {
            Some((left, right)) if known => merges.push(json!([left, right])),
            _ => {
                return Err(FormatError::damaged(
                    &file.path,
                    format!("the tokenizer merge {merge:?} is of unknown tokens"),
                ));
            }
        }
    }

    let mut model = Map::new();
    model.insert("type".into(), json!("BPE"));
    model.insert("dropout".into(), Value::Null);
    model.insert("unk_token".into(), Value::Null);
    model.insert("continuing_subword_prefix".into(), Value::Null);
    model.insert("end_of_word_suffix".into(), Value::Null);
    model.insert("fuse_unk".into(), json!(false));
    model.insert("byte_fallback".into(), json!(false));
    model.insert("ignore_merges".into(), json!(scheme.ignore_merges));
    model.insert("vocab".into(), Value::Object(vocab));
    model.insert("merges".into(), Value::Array(merges));
    Ok(Parts {
        normalizer: scheme.normalizer,
        pre_tokenizer: scheme.pre_tokenizer,
        decoder: json!({
            "type": "ByteLevel",
            "add_prefix_space": true,
            "trim_offsets": true,
            "use_regex": true,
        }),
        model,
        added_tokens,
    })
}
