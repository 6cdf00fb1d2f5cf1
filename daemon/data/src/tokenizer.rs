//! The model's tokenizer and chat template as one thing.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use jiff::civil::DateTime;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, Tokenizer};

use crate::error::{DataError, Result};
use crate::message::Message;
use crate::renders::{LeftOut, Shapes};
use crate::template::{ChatTemplate, DEFAULT_NOW, Extras, PLAIN_TEMPLATE, SpecialTokens, message_value};
use finetuned_formats::TokenizerSource;

/// Token ids of a text, each with the bytes that it stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub ids: Vec<u32>,
    /// One byte range of the text per id. Ranges never go back; the tokens of one
    /// character share its range.
    pub bytes: Vec<Range<usize>>,
}

/// A tokenizer that knows the model's chat template, its special tokens and the
/// tokens that end an assistant's turn.
pub struct ChatTokenizer {
    inner: Tokenizer,
    template: ChatTemplate,
    shapes: Shapes,
    source: TokenizerSource,
    /// Ids that the tokenizer puts before and after each text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    special: HashSet<u32>,
    /// First bytes of special tokens: a text without any of them holds no such token.
    special_starts: HashSet<u8>,
    /// Most bytes of text that one token stands for.
    longest_token: usize,
    stop: Vec<u32>,
    /// Ids of "\n", if the tokenizer treats the start of a text unlike its middle
    /// (SentencePiece's leading blank).
    anchor: Option<Vec<u32>>,
    folds_system: bool,
}

impl std::fmt::Debug for ChatTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("stop", &self.stop)
            .finish_non_exhaustive()
    }
}

impl ChatTokenizer {
    /// Loads the tokenizer and compiles the template.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] and [`DataError::Template`].
    pub fn new(source: &TokenizerSource) -> Result<Self> {
        Self::with_now(source, DEFAULT_NOW)
    }

    /// Like [`Self::new`], with the date and time that templates see as now.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_now(source: &TokenizerSource, now: DateTime) -> Result<Self> {
        let fail = |error: tokenizers::Error| DataError::Tokenizer(error.to_string());
        let mut inner = Tokenizer::from_bytes(source.json.as_bytes()).map_err(fail)?;
        // Rows are cut and counted by this crate; nothing is padded.
        inner.with_truncation(None).map_err(fail)?;
        inner.with_padding(None);
        // The tokens that the model names are tokens in every text, even if
        // tokenizer.json does not list them as added. The vocabulary never grows.
        for text in [&source.bos_token, &source.eos_token].into_iter().flatten() {
            if inner.token_to_id(text).is_some() {
                inner.add_special_tokens([AddedToken::from(text.clone(), true)]).map_err(fail)?;
            }
        }
        let id = |inner: &Tokenizer, text: &Option<String>| text.as_deref().and_then(|text| inner.token_to_id(text));
        let bos = id(&inner, &source.bos_token);
        let eos = id(&inner, &source.eos_token);

        // The post-processor's tokens are found once and then added by hand: run
        // on each text, it would also trim blanks off the offsets.
        let bare = inner.encode("a", false).map_err(fail)?.get_ids().to_vec();
        let full = inner.encode("a", true).map_err(fail)?.get_ids().to_vec();
        let at = full.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
        let mut prefix = full[..at].to_vec();
        let mut suffix = full[(at + bare.len()).min(full.len())..].to_vec();
        inner.with_post_processor(None::<PostProcessorWrapper>);
        if let (true, Some(bos)) = (source.add_bos, bos)
            && !prefix.contains(&bos)
        {
            prefix.insert(0, bos);
        }
        if let (true, Some(eos)) = (source.add_eos, eos)
            && !suffix.contains(&eos)
        {
            suffix.push(eos);
        }

        let (mut special, mut special_starts) = (HashSet::new(), HashSet::new());
        for (id, token) in inner.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special) {
            special.insert(id);
            special_starts.extend(token.content.bytes().next());
        }
        let longest_token = inner.get_vocab(true).keys().map(String::len).max().unwrap_or(1).max(1);
        let tokens = SpecialTokens {
            bos: source.bos_token.clone(),
            eos: source.eos_token.clone(),
            pad: source.pad_token.clone(),
            unk: source.unk_token.clone(),
            add_bos: bos.is_some_and(|bos| prefix.contains(&bos)),
        };
        let template = source.chat_template.as_deref().unwrap_or(PLAIN_TEMPLATE);
        let mut this = Self {
            template: ChatTemplate::new(template, tokens, now)?,
            shapes: Shapes::default(),
            source: TokenizerSource { json: String::new(), ..source.clone() },
            prefix,
            suffix,
            bos,
            eos,
            special,
            special_starts,
            longest_token,
            stop: Vec::new(),
            anchor: None,
            folds_system: false,
            inner,
        };
        let newline = this.encode_bare("\n")?;
        let after = this.encode_bare("\na")?.ids;
        if after.strip_prefix(newline.ids.as_slice()) != Some(this.encode_bare("a")?.ids.as_slice()) {
            this.anchor = Some(newline.ids);
        }
        this.folds_system = this.template_refuses_system();
        this.stop = this.find_stop_tokens()?;
        Ok(this)
    }

    /// Token ids of a text. With `add_special` also the tokens that the tokenizer
    /// puts around a document; a BOS that the text begins with is not doubled.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let ids = self.encode_bare(text)?.ids;
        if !add_special {
            return Ok(ids);
        }
        let prefix: &[u32] = if self.bos.is_some() && ids.first().copied() == self.bos { &[] } else { &self.prefix };
        let suffix: &[u32] = if self.suffix.is_empty() || ids.ends_with(&self.suffix) { &[] } else { &self.suffix };
        Ok([prefix, &ids, suffix].concat())
    }

    /// The text of token ids, without special tokens if `skip_special`.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`].
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|error| DataError::Tokenizer(error.to_string()))
    }

    /// The text of one token for people to read: what it decodes to, or its
    /// number in angle brackets if the tokenizer has no such id.
    pub fn token_text(&self, id: u32) -> String {
        match self.inner.id_to_token(id) {
            None => format!("<{id}>"),
            Some(piece) => match self.decode(&[id], false) {
                Ok(text) if !text.is_empty() && !text.contains('\u{fffd}') => text,
                _ => piece,
            },
        }
    }

    /// Id of a token by its exact text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The conversation in the model's own text, followed by the header of an
    /// assistant's turn if `add_generation_prompt`.
    ///
    /// # Errors
    /// [`DataError::Render`] with the template's reason.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let values: Vec<_> = self.fold_system(messages).iter().map(message_value).collect();
        self.template.render(&values, &Extras::default(), add_generation_prompt)
    }

    /// Token ids to generate an answer from: the tokens before the answer's first
    /// one in training. BOS is as the template writes it, never doubled.
    ///
    /// # Errors
    /// [`DataError::Render`] and [`DataError::Tokenizer`].
    pub fn encode_chat_prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let mut ids = self.encode_bare(&self.render(messages, true)?)?.ids;
        self.undouble_bos(&mut ids);
        Ok(ids)
    }

    /// Token ids to continue a plain text from, as training sees it in `text` rows
    /// and, without a chat template, in `prompt`/`completion` rows: with BOS if the
    /// tokenizer wants one, without EOS.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`].
    pub fn encode_text_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode_bare(text)?.ids;
        Ok(self.with_bos(ids))
    }

    /// The tokens that end an answer: every end-of-sequence id of the model, and
    /// the token that its template writes at the end of an assistant's turn.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop
    }

    /// Number of token ids, added tokens included. The model's embedding may have
    /// more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Whether the model brought a template; otherwise [`PLAIN_TEMPLATE`] is used.
    pub fn has_chat_template(&self) -> bool {
        self.source.chat_template.is_some()
    }

    /// Whether the template refuses a system message, or leaves it out. Its text is
    /// then put before the first user message.
    pub fn folds_system(&self) -> bool {
        self.folds_system
    }

    /// The beginning-of-text token, if there is one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-text token, if there is one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether the id is a special token, which ordinary text does not hold.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// Whether a text holds special tokens, written out.
    pub(crate) fn holds_special(&self, text: &str) -> bool {
        text.bytes().any(|byte| self.special_starts.contains(&byte))
            && self.encode_bare(text).is_ok_and(|encoded| encoded.ids.iter().any(|&id| self.is_special(id)))
    }

    /// Most bytes of text that one token stands for: a text of more than `n` times as
    /// many has more than `n` tokens.
    pub(crate) fn longest_token(&self) -> usize {
        self.longest_token
    }

    /// A decoder for ids that come one at a time.
    pub fn stream_decoder(&self, skip_special: bool) -> StreamDecoder<'_> {
        StreamDecoder { tokenizer: self, skip_special, ids: Vec::new(), from: 0, shown: 0 }
    }

    pub(crate) fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// What the template does not write of this conversation.
    pub(crate) fn left_out(&self, messages: &[Message], extras: &Extras) -> Arc<LeftOut> {
        self.shapes.left_out(&self.template, messages, extras)
    }

    /// Ids and byte ranges, nothing added.
    pub(crate) fn encode_bare(&self, text: &str) -> Result<Encoded> {
        let encoding = self.inner.encode(text, false).map_err(|error| DataError::Tokenizer(error.to_string()))?;
        let bytes = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok(Encoded { ids: encoding.get_ids().to_vec(), bytes })
    }

    /// Like [`Self::encode_bare`], for a text that continues another: no blank is
    /// put before it.
    pub(crate) fn encode_continuation(&self, text: &str) -> Result<Encoded> {
        let Some(anchor) = self.anchor.as_deref().filter(|_| !text.is_empty()) else {
            return self.encode_bare(text);
        };
        let anchored = self.encode_bare(&format!("\n{text}"))?;
        if anchored.ids.len() <= anchor.len() || !anchored.ids.starts_with(anchor) {
            return self.encode_bare(text);
        }
        let back = |at: usize| at.saturating_sub(1);
        Ok(Encoded {
            ids: anchored.ids[anchor.len()..].to_vec(),
            bytes: anchored.bytes[anchor.len()..].iter().map(|range| back(range.start)..back(range.end)).collect(),
        })
    }

    /// `ids`, behind the tokens that the tokenizer puts before a document.
    pub(crate) fn with_bos(&self, ids: Vec<u32>) -> Vec<u32> {
        if self.prefix.is_empty() || (self.bos.is_some() && ids.first().copied() == self.bos) {
            return ids;
        }
        let mut all = self.prefix.clone();
        all.extend(ids);
        all
    }

    /// Removes every BOS at the start but one: a template may write BOS before a
    /// first message that begins with it. Returns how many were removed.
    pub(crate) fn undouble_bos(&self, ids: &mut Vec<u32>) -> usize {
        let Some(bos) = self.bos else { return 0 };
        let leading = ids.iter().take_while(|&&id| id == bos).count();
        let extra = leading.saturating_sub(1);
        ids.drain(..extra);
        extra
    }

    /// Messages as the template can take them: if it refuses a system message,
    /// that text is put before the first user message.
    pub(crate) fn fold_system<'a>(&self, messages: &'a [Message]) -> std::borrow::Cow<'a, [Message]> {
        let [first, rest @ ..] = messages else { return messages.into() };
        if !self.folds_system || first.role != "system" {
            return messages.into();
        }
        let mut folded = rest.to_vec();
        match folded.iter_mut().find(|message| message.role == "user") {
            Some(user) => user.content = format!("{}\n\n{}", first.content, user.content),
            None => folded.insert(0, Message::user(first.content.clone())),
        }
        folded.into()
    }

    fn template_refuses_system(&self) -> bool {
        let render = |messages: &[Message]| {
            let values: Vec<_> = messages.iter().map(message_value).collect();
            self.template.render(&values, &Extras::default(), true)
        };
        const MARK: &str = "zQsystemQz";
        let turns = [Message::system(MARK), Message::user("u"), Message::assistant("a")];
        let writes = |messages: &[Message]| render(messages).is_ok_and(|text| text.contains(MARK));
        // Some templates (Mistral's) write it only while the answer is still to come.
        !(writes(&turns[..2]) && writes(&turns)) && render(&turns[1..2]).is_ok()
    }

    /// The model's end-of-sequence ids, and the first special token behind the
    /// assistant's text in a rendered conversation: many templates end a turn with
    /// another token than EOS (`<end_of_turn>`, `<|eot_id|>`).
    fn find_stop_tokens(&self) -> Result<Vec<u32>> {
        let mut stop = self.source.eos_ids.clone();
        stop.extend(self.eos);
        let probe = "finetuned probe";
        let conversation = [Message::user("Hello"), Message::assistant(probe)];
        if let Ok(text) = self.render(&conversation, false)
            && let Some(at) = text.rfind(probe)
        {
            let encoded = self.encode_bare(&text)?;
            let after = at + probe.len();
            let end = encoded
                .ids
                .iter()
                .zip(&encoded.bytes)
                .find(|(id, bytes)| bytes.start >= after && self.is_special(**id));
            stop.extend(end.map(|(id, _)| *id));
        }
        let mut seen = HashSet::new();
        stop.retain(|id| seen.insert(*id));
        Ok(stop)
    }
}

/// Turns ids that come one at a time into text. Holds back the bytes that are no
/// whole character yet.
pub struct StreamDecoder<'a> {
    tokenizer: &'a ChatTokenizer,
    skip_special: bool,
    ids: Vec<u32>,
    /// Ids before this one are needed no more.
    from: usize,
    /// The text of `ids[from..shown]` has been given out.
    shown: usize,
}

impl StreamDecoder<'_> {
    /// The text that `id` completes, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.ids.push(id);
        let text = self.text(self.ids.len());
        // An unfinished character decodes to U+FFFD. No character takes more than
        // four tokens of bytes; what stays broken after eight is returned as it is.
        if text.ends_with('\u{fffd}') && self.ids.len() - self.shown < 8 {
            return None;
        }
        self.take(&text)
    }

    /// The text that is still held back, when no more ids come.
    pub fn finish(&mut self) -> Option<String> {
        let text = self.text(self.ids.len());
        self.take(&text)
    }

    fn take(&mut self, text: &str) -> Option<String> {
        // Decoders strip a blank off the start of a text. Decoding from one token
        // earlier keeps it.
        let before = self.text(self.shown);
        let news = text.strip_prefix(before.as_str()).unwrap_or_default().to_owned();
        if news.is_empty() {
            return None;
        }
        self.from = self.shown;
        self.shown = self.ids.len();
        Some(news)
    }

    fn text(&self, to: usize) -> String {
        self.tokenizer.decode(&self.ids[self.from..to], self.skip_special).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
