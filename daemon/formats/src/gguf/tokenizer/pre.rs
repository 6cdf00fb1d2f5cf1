//! How a byte-level vocabulary's text is cut into words before merging.
//!
//! A GGUF file names the scheme in `tokenizer.ggml.pre`. The expressions are
//! those of the models' own `tokenizer.json`; llama.cpp spells some of them
//! differently for its own matcher.

use serde_json::{Value, json};

/// One scheme.
pub(super) struct Scheme {
    pub(super) pre_tokenizer: Value,
    /// The word as a whole is looked up before any merging.
    pub(super) ignore_merges: bool,
    /// Whether a beginning-of-sequence token is added if the file does not say.
    pub(super) add_bos: bool,
    /// Unicode normalisation that the models of this scheme were trained with.
    pub(super) normalizer: Value,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &[&str] = &[
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const DEEPSEEK_CODER: &[&str] = &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"];
/// Files from before schemes were named; llama.cpp warns of worse quality.
const UNNAMED: &[&str] = &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"];

/// The scheme of a name; `None` for one that is not known here.
pub(super) fn scheme(name: &str) -> Option<Scheme> {
    let plain =
        Scheme { pre_tokenizer: byte_level(true), ignore_merges: false, add_bos: false, normalizer: Value::Null };
    Some(match name {
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "pixtral" | "midm-2.0" | "lfm2" => {
            Scheme { pre_tokenizer: splits(&[LLAMA3]), ignore_merges: true, add_bos: true, ..plain }
        }
        "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" => Scheme { pre_tokenizer: splits(&[LLAMA3]), ..plain },
        "tekken" => Scheme { pre_tokenizer: splits(&[TEKKEN]), ignore_merges: true, add_bos: true, ..plain },
        "qwen2" | "megrez" | "kormo" => {
            Scheme { pre_tokenizer: splits(&[QWEN2]), normalizer: json!({"type": "NFC"}), ..plain }
        }
        // Qwen's vocabulary without Qwen's normalizer.
        "deepseek-r1-qwen" | "stablelm2" | "hunyuan" | "solar-open" | "f2llmv2" => {
            Scheme { pre_tokenizer: splits(&[QWEN2]), ..plain }
        }
        "gpt-4o" | "llama4" | "kanana2" => Scheme { pre_tokenizer: splits(&[GPT4O]), ..plain },
        "seed-coder" => Scheme { pre_tokenizer: splits(&[SEED_CODER]), ..plain },
        "deepseek-v3" => Scheme { pre_tokenizer: splits(DEEPSEEK3), ..plain },
        "deepseek-coder" => Scheme { pre_tokenizer: splits(DEEPSEEK_CODER), ..plain },
        "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "gigachat" | "exaone4" | "a.x-4.0" | "mellum"
        | "granite-docling" => plain,
        // Each digit alone, then GPT-2's expression.
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => Scheme {
            pre_tokenizer: json!({
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits", "individual_digits": true},
                    byte_level(true),
                ],
            }),
            ..plain
        },
        "default" => Scheme { pre_tokenizer: splits(UNNAMED), ..plain },
        _ => return None,
    })
}

fn byte_level(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": true,
        "use_regex": use_regex,
    })
}

/// Each expression cuts the pieces that the one before left.
fn splits(expressions: &[&str]) -> Value {
    let mut sequence: Vec<Value> = expressions
        .iter()
        .map(|expression| {
            json!({
                "type": "Split",
                "pattern": {"Regex": expression},
                "behavior": "Isolated",
                "invert": false,
            })
        })
        .collect();
    sequence.push(byte_level(false));
    json!({"type": "Sequence", "pretokenizers": sequence})
}
