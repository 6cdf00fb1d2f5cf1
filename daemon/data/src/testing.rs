//! What several tests need: the golden folder's tokenizers with the golden
//! folder's templates.

use std::path::{Path, PathBuf};

use finetuned_formats::TokenizerSource;

use crate::{ChatTokenizer, Message};

pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

pub(crate) fn template(name: &str) -> String {
    std::fs::read_to_string(golden().join(format!("templates/{name}.jinja"))).unwrap()
}

/// BOS and EOS of the models that the templates are of.
fn special(template: &str) -> (Option<&'static str>, &'static str) {
    match template {
        "smollm2" => (Some("<|im_start|>"), "<|im_end|>"),
        name if name.starts_with("qwen") => (None, "<|im_end|>"),
        name if name.starts_with("llama3") => (Some("<|begin_of_text|>"), "<|eot_id|>"),
        name if name.starts_with("gemma") => (Some("<bos>"), "<eos>"),
        "phi3" => (Some("<s>"), "<|endoftext|>"),
        _ => (Some("<s>"), "</s>"),
    }
}

/// `bytes` or `pieces`, described with the template of `template`.
pub(crate) fn source(tokenizer: &str, template_name: Option<&str>) -> TokenizerSource {
    let (bos, eos) = special(template_name.unwrap_or_default());
    TokenizerSource {
        json: std::fs::read_to_string(golden().join(format!("{tokenizer}.json"))).unwrap(),
        chat_template: template_name.map(template),
        bos_token: bos.map(str::to_owned),
        eos_token: Some(eos.to_owned()),
        pad_token: Some(eos.to_owned()),
        unk_token: None,
        add_bos: tokenizer == "pieces",
        add_eos: false,
        eos_ids: Vec::new(),
        extra_files: Vec::new(),
    }
}

pub(crate) fn tokenizer(tokenizer: &str, template_name: Option<&str>) -> ChatTokenizer {
    ChatTokenizer::new(&source(tokenizer, template_name)).unwrap()
}

/// The bytes tokenizer with a template of the test's own.
pub(crate) fn with_template(template: &str) -> ChatTokenizer {
    ChatTokenizer::new(&TokenizerSource { chat_template: Some(template.to_owned()), ..source("bytes", None) }).unwrap()
}

/// "user: a", "assistant: b", … as messages.
pub(crate) fn talk(lines: &[(&str, &str)]) -> Vec<Message> {
    lines.iter().map(|(role, content)| Message::new(*role, *content)).collect()
}
