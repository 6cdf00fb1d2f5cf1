//! SentencePiece BPE vocabularies (`tokenizer.ggml.model` = "llama").
//!
//! The file has pieces with scores and no merges: SentencePiece joins the
//! adjacent pair whose joined piece scores best. As merges, every split of a
//! piece into two pieces is listed, best score first.

use super::{Kind, Parts, Vocabulary, added_token};
use crate::error::FormatError;
use crate::families::Family;
use serde_json::{Map, Value, json};
use std::cmp::Reverse;
use std::collections::HashMap;

/// SentencePiece's visible space.
const SPACE: &str = "▁";

pub(super) fn build(vocabulary: &Vocabulary<'_>, family: &Family) -> Result<Parts, FormatError> {
    let file = vocabulary.file;
    let spaces_are_pieces = family.gguf.spaces_are_pieces;
    let scores = file.floats("tokenizer.ggml.scores")?;
    let count = vocabulary.tokens.len();
    if scores.is_none_or(|scores| scores.len() != count) {
        return Err(FormatError::damaged(
            &file.path,
            format!("its SentencePiece vocabulary of {count} tokens has no score for each"),
        ));
    }
    let scores = scores.unwrap_or_default();

    let mut pieces: Vec<String> = Vec::with_capacity(count);
    for (token, kind) in vocabulary.tokens.iter().zip(&vocabulary.kinds) {
        // The converter spells Gemma's runs of spaces out.
        let spaces = !token.is_empty() && token.bytes().all(|b| b == b' ');
        if spaces_are_pieces && *kind == Kind::UserDefined && spaces {
            pieces.push(SPACE.repeat(token.len()));
        } else {
            pieces.push(token.clone());
        }
    }
    let mut ids: HashMap<&str, usize> = HashMap::with_capacity(count);
    let mut vocab = Map::new();
    for (id, piece) in pieces.iter().enumerate() {
        if !ids.contains_key(piece.as_str()) {
            ids.insert(piece, id);
            vocab.insert(piece.clone(), json!(id));
        }
    }

    let add_prefix = !spaces_are_pieces && file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let merges = merges(vocabulary, &pieces, &ids, scores, spaces_are_pieces);
    let unk = vocabulary.unk.map(|id| pieces[id as usize].clone());

    let mut model = Map::new();
    model.insert("type".into(), json!("BPE"));
    model.insert("dropout".into(), Value::Null);
    model.insert("unk_token".into(), json!(unk));
    model.insert("continuing_subword_prefix".into(), Value::Null);
    model.insert("end_of_word_suffix".into(), Value::Null);
    model.insert("fuse_unk".into(), json!(true));
    model.insert("byte_fallback".into(), json!(true));
    model.insert("ignore_merges".into(), json!(false));
    model.insert("vocab".into(), Value::Object(vocab));
    model.insert("merges".into(), Value::Array(merges));

    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let normalizer = if add_prefix {
        json!({
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace],
        })
    } else {
        replace
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if add_prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(Parts {
        normalizer,
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model,
        added_tokens: added_tokens(vocabulary, &pieces, family),
    })
}

fn added_tokens(vocabulary: &Vocabulary<'_>, pieces: &[String], family: &Family) -> Vec<Value> {
    // Phi-3's own tokens swallow the space after them, which a GGUF file does
    // not say; llama.cpp knows it by the model's name too.
    let tokens_swallow_space = family.gguf.tokens_swallow_space;
    let keeps_space = ["<unk>", "<s>", "<|endoftext|>"];
    pieces
        .iter()
        .zip(&vocabulary.kinds)
        .enumerate()
        .filter_map(|(id, (piece, kind))| {
            let special = match kind {
                Kind::Control | Kind::Unknown => true,
                Kind::UserDefined => false,
                _ => return None,
            };
            let rstrip = tokens_swallow_space && !keeps_space.contains(&piece.as_str());
            Some(added_token(id, piece, special, rstrip))
        })
        .collect()
}

/// Every way of joining two pieces into a third, in the order of preference.
///
/// Gemma's scores do not follow its merges; the order of its pieces does. Its
/// runs of spaces, tabs and newlines are taken as one before anything else.
fn merges(
    vocabulary: &Vocabulary<'_>,
    pieces: &[String],
    ids: &HashMap<&str, usize>,
    scores: &[f32],
    spaces_are_pieces: bool,
) -> Vec<Value> {
    let joins = |id: usize| {
        matches!(vocabulary.kinds[id], Kind::Normal) || (spaces_are_pieces && vocabulary.kinds[id] == Kind::UserDefined)
    };
    let mut found: Vec<(f32, usize, usize, &str, &str)> = Vec::new();
    for (id, piece) in pieces.iter().enumerate() {
        if !joins(id) || ids.get(piece.as_str()) != Some(&id) {
            continue;
        }
        let score = match vocabulary.kinds[id] {
            Kind::UserDefined => f32::INFINITY,
            _ if spaces_are_pieces => -(id as f32),
            _ => scores[id],
        };
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right))
                && joins(l)
                && joins(r)
            {
                found.push((score, l, r, left, right));
            }
        }
    }
    // Within one piece by the parts' ids; the sort after it is stable.
    found.sort_by_key(|(_, l, r, _, _)| (*l, *r));
    found.sort_by(|a, b| {
        let lengths = |x: &(f32, usize, usize, &str, &str)| Reverse((x.3.chars().count(), x.4.chars().count()));
        b.0.total_cmp(&a.0).then_with(|| lengths(a).cmp(&lengths(b)))
    });
    found.into_iter().map(|(_, _, _, left, right)| json!([left, right])).collect()
}
