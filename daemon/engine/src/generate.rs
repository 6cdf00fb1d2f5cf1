//! Generation: a KV cache, greedy or sampled, adapters on or off.

use std::path::Path;
use std::time::Instant;

use finetuned_data::ChatTokenizer;
pub use finetuned_data::Message;
use finetuned_formats::read_peft;
use finetuned_shaders::Device;
use serde::{Deserialize, Serialize};

use crate::base::BaseModel;
use crate::devices;
use crate::error::EngineError;
use crate::model::adapter;
use crate::model::build::{LoadOptions, load};
use crate::model::context::Pass;
use crate::model::decoder::Decoder;
use crate::model::streams;

/// Tokens of a prompt that run in one pass; a longer prompt runs in pieces, so
/// that its activations stay small.
const PROMPT_CHUNK: usize = 512;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateOptions {
    /// Most new tokens.
    pub max_tokens: usize,
    /// 0: greedy, always the likeliest token.
    pub temperature: f64,
    /// Only the k likeliest tokens; 0: all.
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability; 1: all.
    pub top_p: f64,
    pub seed: u64,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions { max_tokens: 256, temperature: 0.0, top_k: 0, top_p: 1.0, seed: 42 }
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoppedBy {
    /// An end-of-turn or end-of-text token.
    StopToken,
    MaxTokens,
    /// The context is full.
    Context,
    /// The caller.
    Caller,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    pub text: String,
    pub tokens: Vec<u32>,
    pub prompt_tokens: usize,
    /// Of the new tokens alone.
    pub seconds: f64,
    pub prompt_seconds: f64,
    pub stopped_by: StoppedBy,
}

/// A model ready to write.
pub struct Generator {
    ops: Device,
    model: Decoder,
    tokenizer: ChatTokenizer,
    adapters: bool,
}

impl Generator {
    /// Opens a model, with an adapter if one is given.
    ///
    /// # Errors
    /// A model or adapter that cannot be used, a device that is not there.
    pub fn open(
        model: &Path,
        adapter: Option<&Path>,
        device: &str,
        threads: Option<usize>,
    ) -> Result<Generator, EngineError> {
        let opened = BaseModel::open(model)?;
        let ops = devices::open(device, threads)?;
        // A cache grows with what is written, so the model's own reach is the limit;
        // rotary tables for more than this cost memory that no answer needs.
        let context = opened.files.config.max_positions.min(32 * 1024);
        let options = LoadOptions { trainable: false, nf4: None, context };
        let mut decoder = load(&ops, &opened.files.config, opened.files.tensors.as_ref(), &options)?;
        if let Some(folder) = adapter {
            adapter::attach_peft(&ops, &mut decoder, &read_peft(folder)?)?;
        }
        Ok(Generator { ops, model: decoder, tokenizer: opened.tokenizer, adapters: true })
    }

    /// From parts that are already there.
    pub fn from_parts(ops: Device, model: Decoder, tokenizer: ChatTokenizer) -> Generator {
        Generator { ops, model, tokenizer, adapters: true }
    }

    /// With `on` false the model answers as its base.
    pub fn set_adapter(&mut self, on: bool) {
        self.adapters = on;
    }

    pub fn tokenizer(&self) -> &ChatTokenizer {
        &self.tokenizer
    }

    /// Answers a conversation. `on_text` receives the text as it comes and ends
    /// the generation by returning false.
    ///
    /// # Errors
    /// A template that refuses the messages, a prompt longer than the context.
    pub fn generate(
        &mut self,
        messages: &[Message],
        options: &GenerateOptions,
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generation, EngineError> {
        let prompt = self.tokenizer.encode_chat_prompt(messages)?;
        self.tokens(&prompt, options, on_text)
    }

    /// Continues a text as it stands, without a chat template.
    ///
    /// # Errors
    /// As [`Generator::generate`].
    pub fn complete(
        &mut self,
        text: &str,
        options: &GenerateOptions,
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generation, EngineError> {
        let prompt = self.tokenizer.encode_text_prompt(text)?;
        self.tokens(&prompt, options, on_text)
    }

    /// Continues token ids.
    ///
    /// # Errors
    /// An empty prompt, or one longer than the context.
    pub fn tokens(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generation, EngineError> {
        if prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        let context = self.model.context;
        if prompt.len() >= context {
            return Err(EngineError::PromptTooLong { tokens: prompt.len(), context });
        }
        let ops = &self.ops;
        let pass = Pass::evaluation(self.adapters);
        let capacity = (prompt.len() + options.max_tokens).min(context);
        let mut caches = self.model.caches(ops, capacity)?;
        let started = Instant::now();
        let mut length = 0;
        let mut logits = Vec::new();
        for chunk in prompt.chunks(PROMPT_CHUNK) {
            logits = ops.read(&self.model.decode(ops, chunk, &mut caches, length, &pass)?)?;
            length += chunk.len();
        }
        let prompt_seconds = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let mut decoder = self.tokenizer.stream_decoder(true);
        let mut tokens = Vec::new();
        let mut text = String::new();
        let mut stopped_by = StoppedBy::MaxTokens;
        while tokens.len() < options.max_tokens {
            let random = streams::sampling(options.seed, tokens.len() as u32).uniform(0);
            let token = sample(&logits, options, random).ok_or(EngineError::LogitsNotFinite)?;
            if self.tokenizer.stop_tokens().contains(&token) {
                stopped_by = StoppedBy::StopToken;
                break;
            }
            tokens.push(token);
            if let Some(piece) = decoder.push(token) {
                text.push_str(&piece);
                if !on_text(&piece) {
                    stopped_by = StoppedBy::Caller;
                    break;
                }
            }
            if length >= capacity {
                if length >= context {
                    stopped_by = StoppedBy::Context;
                }
                break;
            }
            logits = ops.read(&self.model.decode(ops, &[token], &mut caches, length, &pass)?)?;
            length += 1;
        }
        if let Some(rest) = decoder.finish() {
            on_text(&rest);
            text.push_str(&rest);
        }
        let seconds = started.elapsed().as_secs_f64();
        Ok(Generation { text, tokens, prompt_tokens: prompt.len(), seconds, prompt_seconds, stopped_by })
    }
}

/// The next token, from a uniform random number; None if a logit is NaN or
/// all are −∞.
///
/// Filters act in the order top-k, then top-p, on the probabilities at the
/// given temperature, as in transformers.
pub fn sample(logits: &[f32], options: &GenerateOptions, random: f32) -> Option<u32> {
    if logits.iter().any(|l| l.is_nan()) {
        return None;
    }
    // The first of equals, as torch.argmax.
    let best = logits.iter().enumerate().fold(None, |best: Option<(usize, f32)>, (i, l)| match best {
        Some((_, top)) if *l <= top => best,
        _ if *l == f32::NEG_INFINITY => best,
        _ => Some((i, *l)),
    })?;
    if options.temperature <= 0.0 {
        return Some(best.0 as u32);
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    if options.top_k > 0 {
        order.truncate(options.top_k);
    }
    let weight: Vec<f64> =
        order.iter().map(|i| ((f64::from(logits[*i]) - f64::from(best.1)) / options.temperature).exp()).collect();
    let total: f64 = weight.iter().sum();
    let mut kept = weight.len();
    if options.top_p < 1.0 {
        let mut sum = 0.0;
        for (i, w) in weight.iter().enumerate() {
            sum += w / total;
            if sum >= options.top_p {
                kept = i + 1;
                break;
            }
        }
    }
    let total: f64 = weight[..kept].iter().sum();
    let mut left = f64::from(random) * total;
    for (i, w) in order.iter().zip(&weight[..kept]) {
        if left < *w {
            return Some(*i as u32);
        }
        left -= w;
    }
    order.get(kept.saturating_sub(1)).map(|i| *i as u32)
}

#[cfg(test)]
mod tests {
    use finetuned_shaders::random::Key;

    use super::*;

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let greedy = GenerateOptions::default();
        assert_eq!(sample(&[1.0, 3.0, 3.0, 2.0], &greedy, 0.9), Some(1));
        assert_eq!(sample(&[1.0, f32::NAN], &greedy, 0.0), None);
        assert_eq!(sample(&[f32::NEG_INFINITY; 3], &greedy, 0.0), None);
    }

    #[test]
    fn sampling_follows_the_probabilities_and_the_filters() {
        let logits = [0.0f32, 1.0, 2.0, -1.0];
        let all = GenerateOptions { temperature: 1.0, ..GenerateOptions::default() };
        let count = |options: &GenerateOptions| {
            let mut counts = [0usize; 4];
            for i in 0..4000 {
                let token = sample(&logits, options, Key::new(1, i, 0).uniform(0)).unwrap();
                counts[token as usize] += 1;
            }
            counts
        };
        let counts = count(&all);
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        for (l, c) in logits.iter().zip(counts) {
            let expected = 4000.0 * f64::from(*l).exp() / total;
            assert!((c as f64 - expected).abs() < 5.0 * expected.sqrt(), "{counts:?}");
        }
        let two = count(&GenerateOptions { top_k: 2, ..all.clone() });
        assert!(two[0] == 0 && two[3] == 0 && two[1] > 0 && two[2] > 0);
        // 0.64 and 0.24 are the two largest probabilities: 0.7 needs both, 0.6 one.
        let nucleus = count(&GenerateOptions { top_p: 0.7, ..all.clone() });
        assert!(nucleus[0] == 0 && nucleus[3] == 0 && nucleus[1] > 0);
        assert_eq!(count(&GenerateOptions { top_p: 0.6, ..all })[2], 4000);
    }
}
