//! A row's content as token ids, with the trained ones marked.

use std::ops::Range;

use crate::error::DataError;
use crate::example::Document;
use crate::format::{Content, Prompt, is_harmless_in_messages};
use crate::message::Message;
use crate::notes::Fact;
use crate::options::TrainOn;
use crate::renders::LeftOut;
use crate::row_error::{RowError, RowResult};
use crate::spans::{Turn, find_turns};
use crate::template::{Extras, REASONING_KEYS, message_value};
use crate::tokenizer::{ChatTokenizer, Encoded};

/// A row as documents, before any cut.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EncodedRow {
    /// At least one.
    pub documents: Vec<Document>,
    /// Trained turns of the assistant.
    pub turns: usize,
    /// How many of them end with an end-of-turn token that is trained.
    pub ended: usize,
    /// What else is worth knowing of the row.
    pub facts: Vec<Fact>,
}

impl EncodedRow {
    fn of(documents: Vec<Document>, ended: &[bool]) -> Self {
        let count = ended.iter().filter(|&&ended| ended).count();
        Self { documents, turns: ended.len(), ended: count, facts: Vec::new() }
    }
}

/// Turns a row's content into token ids; `None` if every message of the row
/// says that it is not to be trained on.
///
/// # Errors
/// Why the row cannot be used.
pub(crate) fn encode(tokenizer: &ChatTokenizer, content: Content, train_on: TrainOn) -> RowResult<Option<EncodedRow>> {
    let mut encoder = Encoder { tokenizer, train_on, facts: Vec::new() };
    let row = encoder.row(content)?;
    Ok(row.map(|row| EncodedRow { facts: encoder.facts, ..row }))
}

struct Encoder<'a> {
    tokenizer: &'a ChatTokenizer,
    train_on: TrainOn,
    facts: Vec<Fact>,
}

/// A rendered text as tokens, with its trained turns marked.
#[derive(Default)]
struct Written {
    tokens: Vec<u32>,
    trained: Vec<bool>,
    weights: Option<Vec<f32>>,
    turns: usize,
    ended: usize,
}

impl Written {
    fn into_row(self) -> EncodedRow {
        let Self { tokens, trained, weights, turns, ended } = self;
        let documents = vec![Document { weights, ..Document::plain(tokens, trained) }];
        EncodedRow { documents, turns, ended, facts: Vec::new() }
    }
}

/// A prompt and what follows it.
struct Split {
    prompt: Vec<u32>,
    completion: Vec<u32>,
    ended: bool,
}

fn refused(error: DataError) -> RowError {
    RowError::Refused(match error {
        DataError::Render(reason) => reason,
        other => other.to_string(),
    })
}

impl Encoder<'_> {
    fn row(&mut self, content: Content) -> RowResult<Option<EncodedRow>> {
        Ok(Some(match content {
            Content::Chat { messages, extras } => return self.chat(&messages, &extras),
            Content::Completion { prompt, completion } => {
                self.note_repetition(&Prompt::Text(prompt.clone()), [&[Message::assistant(&completion)]]);
                return self.completion(&prompt, &completion);
            }
            Content::Text(text) => self.text(&text)?,
            Content::Tokens { ids, trained, weights } => self.tokens(ids, trained, weights),
            Content::Pair { prompt, chosen, rejected, extras } => {
                self.note_repetition(&prompt, [&chosen, &rejected]);
                let chosen = self.prompted(&prompt, chosen, &extras)?;
                let rejected = self.prompted(&prompt, rejected, &extras)?;
                if chosen.prompt != rejected.prompt {
                    return Err(RowError::PromptChanges);
                }
                if chosen.completion == rejected.completion {
                    return Err(RowError::SameRendered);
                }
                let documents = Document::pair(&chosen.prompt, &chosen.completion, &rejected.completion);
                EncodedRow::of(documents, &[chosen.ended, rejected.ended])
            }
            Content::Labelled { prompt, completion, label, extras } => {
                self.note_repetition(&prompt, [&completion]);
                let split = self.prompted(&prompt, completion, &extras)?;
                EncodedRow::of(Document::labelled(&split.prompt, &split.completion, label, None), &[split.ended])
            }
            Content::PairTokens { prompt, chosen, rejected } => {
                let ended = [self.ends(&chosen), self.ends(&rejected)];
                EncodedRow::of(Document::pair(&prompt, &chosen, &rejected), &ended)
            }
            Content::LabelledTokens { prompt, completion, label, kl_completion } => {
                let ended = self.ends(&completion);
                EncodedRow::of(Document::labelled(&prompt, &completion, label, kl_completion.as_deref()), &[ended])
            }
        }))
    }

    /// Notes completions that begin with their prompt's text. A short prompt may be the
    /// beginning of its answer by chance.
    fn note_repetition<const N: usize>(&mut self, prompt: &Prompt, completions: [&[Message]; N]) {
        const LEAST_BYTES: usize = 12;
        let Prompt::Text(prompt) = prompt else { return };
        let prompt = prompt.trim();
        let repeats = |completion: &&[Message]| {
            completion.first().is_some_and(|message| message.content.trim_start().starts_with(prompt))
        };
        if prompt.len() >= LEAST_BYTES && completions.iter().any(repeats) {
            self.facts.push(Fact::RepeatsPrompt);
        }
    }

    fn chat(&mut self, messages: &[Message], extras: &Extras) -> RowResult<Option<EncodedRow>> {
        let all = self.train_on == TrainOn::All;
        if !all && !messages.iter().any(|message| message.is_assistant() && message.is_trained()) {
            return Ok(None);
        }
        let (rendered, turns) = self.render(messages, extras, !all)?;
        let mut row = self.document(&rendered, &turns, false)?;
        if all {
            row.trained.iter_mut().skip(1).for_each(|trained| *trained = true);
        }
        if !row.trained.contains(&true) {
            return Err(RowError::AnswerLeftOut);
        }
        Ok(Some(row.into_row()))
    }

    /// The rendered text and, if they matter, the turns in it to train on, with
    /// their weights.
    ///
    /// Messages behind the last answer are left out: they teach nothing, and some
    /// templates render an answer differently if a question follows.
    fn render(
        &mut self,
        messages: &[Message],
        extras: &Extras,
        turns_matter: bool,
    ) -> RowResult<(String, Vec<(Turn, f32)>)> {
        let messages = self.tokenizer.fold_system(messages);
        let last = messages.iter().rposition(Message::is_assistant);
        let kept = last.map_or(messages.len(), |last| last + 1);
        if kept < messages.len() {
            self.facts.push(Fact::BehindTheLastAnswer);
        }
        let messages = &messages[..kept];
        let values: Vec<_> = messages.iter().map(message_value).collect();
        let contents: Vec<&str> = messages.iter().map(|message| message.content.as_str()).collect();
        let wanted: Vec<usize> = (0..messages.len())
            .filter(|&index| turns_matter && messages[index].is_assistant())
            .filter(|&index| messages[index].is_trained())
            .collect();
        let template = self.tokenizer.template();
        let text = template.render(&values, extras, false).map_err(refused)?;
        let left_out = self.tokenizer.left_out(messages, extras);
        if let Some(refusal) = left_out.refusal(messages) {
            return Err(refusal);
        }
        self.note_left_out(&left_out);
        self.note_messages(messages);
        let turns = find_turns(template, &values, &contents, extras, &text, &wanted)?;
        let weighted = turns.into_iter().map(|turn| {
            let weight = messages[turn.message].weight;
            (turn, weight)
        });
        Ok((text, weighted.collect()))
    }

    fn note_left_out(&mut self, left_out: &LeftOut) {
        let noted = [
            (left_out.earlier_thought, Fact::ThoughtLeftOut),
            (left_out.reasoning, Fact::ReasoningLeftOut),
            (left_out.tools, Fact::ToolsLeftOut),
        ];
        self.facts.extend(noted.into_iter().filter(|(is_true, _)| *is_true).map(|(_, fact)| fact));
        self.facts.extend(left_out.before_answer.clone().map(Fact::WrittenBeforeAnswer));
    }

    /// Notes special tokens in texts that are not trained, and keys of messages that
    /// the template does not know.
    fn note_messages(&mut self, messages: &[Message]) {
        let template = self.tokenizer.template();
        for message in messages {
            if !(message.is_assistant() && message.is_trained()) && self.tokenizer.holds_special(&message.content) {
                self.facts.push(Fact::SpecialInPrompt);
            }
            let is_known =
                |key: &str| key == "tool_calls" || REASONING_KEYS.contains(&key) || is_harmless_in_messages(key);
            let unknown = message.extra.keys().filter(|key| !is_known(key) && !template.names(key));
            self.facts.extend(unknown.map(|key| Fact::UnusedKey(format!("messages[].{key}"))));
        }
    }

    /// Tokens of a rendered text with the tokens of `turns` marked.
    ///
    /// A token may run across a turn's start (a blank before it and the answer's
    /// first letter). Generation never sees such a token, so the text is cut there
    /// and encoded in pieces. With `cut` every turn's start is a cut.
    fn document(&mut self, text: &str, turns: &[(Turn, f32)], cut: bool) -> RowResult<Written> {
        let tokenizer = self.tokenizer;
        let mut encoded = tokenizer.encode_bare(text).map_err(refused)?;
        let cuts: Vec<usize> = turns
            .iter()
            .map(|(turn, _)| turn.start)
            .filter(|&start| start > 0 && (cut || self.straddles(&encoded, start)))
            .collect();
        if !cuts.is_empty() {
            encoded = self.in_pieces(text, &cuts)?;
        }
        let Encoded { ids, bytes } = encoded;
        let weighted = turns.iter().any(|(_, weight)| *weight != 1.0);
        let mut document = Written {
            trained: vec![false; ids.len()],
            weights: weighted.then(|| vec![1.0; ids.len()]),
            ..Written::default()
        };
        for (turn, weight) in turns {
            let first = bytes.partition_point(|range| range.start < turn.start);
            let behind_text = bytes.partition_point(|range| range.start < turn.text_end);
            let behind = bytes.partition_point(|range| range.start < turn.bound);
            let closing = &ids[behind_text.min(behind)..behind];
            let stop = |id: &u32| tokenizer.stop_tokens().contains(id);
            let end = closing.iter().position(stop).or_else(|| closing.iter().position(|&id| tokenizer.is_special(id)));
            let to = end.map_or(behind, |at| behind_text + at + 1);
            for index in first..to {
                document.trained[index] = true;
                if let Some(weights) = &mut document.weights {
                    weights[index] = *weight;
                }
            }
            document.turns += 1;
            document.ended += usize::from(end.is_some());
            if end.is_some() && to - first <= 1 {
                return Err(RowError::EmptyTurn(turn.message + 1));
            }
            if ids[first..behind_text.max(first)].iter().any(|&id| tokenizer.is_special(id)) {
                self.facts.push(Fact::SpecialInAnswer);
            }
        }
        document.tokens = ids;
        let doubled = tokenizer.undouble_bos(&mut document.tokens);
        document.trained.drain(..doubled);
        if let Some(weights) = &mut document.weights {
            weights.drain(..doubled);
        }
        if let Some(first) = document.trained.first_mut() {
            *first = false;
        }
        Ok(document)
    }

    /// Whether an ordinary token covers both sides of `at`. A special token that
    /// swallows the blanks behind it does not count: generation has the same one.
    fn straddles(&self, encoded: &Encoded, at: usize) -> bool {
        let behind = encoded.bytes.partition_point(|range| range.start < at);
        encoded.bytes[..behind]
            .iter()
            .zip(&encoded.ids)
            .rev()
            .take(8)
            .any(|(range, id)| range.end > at && !self.tokenizer.is_special(*id))
    }

    fn in_pieces(&self, text: &str, cuts: &[usize]) -> RowResult<Encoded> {
        let mut all = Encoded::default();
        let mut from = 0;
        for to in cuts.iter().copied().chain([text.len()]) {
            let piece = if from == 0 {
                self.tokenizer.encode_bare(&text[..to])
            } else {
                self.tokenizer.encode_continuation(&text[from..to])
            }
            .map_err(refused)?;
            all.ids.extend(piece.ids);
            all.bytes.extend(piece.bytes.into_iter().map(|range| range.start + from..range.end + from));
            from = to;
        }
        Ok(all)
    }

    fn completion(&mut self, prompt: &str, completion: &str) -> RowResult<Option<EncodedRow>> {
        if self.tokenizer.has_chat_template() {
            let messages = [Message::user(prompt), Message::assistant(completion)];
            return self.chat(&messages, &Extras::default());
        }
        let split = self.plain_split(prompt, completion)?;
        let prompt_length = split.prompt.len();
        let tokens = [split.prompt, split.completion].concat();
        let all = self.train_on == TrainOn::All;
        let trained = (0..tokens.len()).map(|index| index > 0 && (all || index >= prompt_length)).collect();
        Ok(Some(EncodedRow::of(vec![Document::plain(tokens, trained)], &[split.ended])))
    }

    /// Without a chat template: the prompt's text, the completion's text, EOS.
    fn plain_split(&self, prompt: &str, completion: &str) -> RowResult<Split> {
        let before = self.tokenizer.encode_bare(prompt).map_err(refused)?.ids;
        let prompt_ids = self.tokenizer.with_bos(before);
        let encoded = if prompt.is_empty() {
            self.tokenizer.encode_bare(completion)
        } else {
            self.tokenizer.encode_continuation(completion)
        }
        .map_err(refused)?;
        let (completion, ended) = self.closed(completion, encoded);
        Ok(Split { prompt: prompt_ids, completion, ended })
    }

    /// A text's ids with EOS behind them, unless the text ends with a stop token,
    /// perhaps with blanks behind it; and whether there is such an end.
    fn closed(&self, text: &str, encoded: Encoded) -> (Vec<u32>, bool) {
        let Encoded { mut ids, bytes } = encoded;
        let is_blank = |range: &Range<usize>| text.get(range.clone()).is_none_or(|piece| piece.trim().is_empty());
        let last = bytes.iter().rposition(|range| !is_blank(range));
        if !last.is_some_and(|last| self.tokenizer.stop_tokens().contains(&ids[last])) {
            ids.extend(self.tokenizer.eos());
            let ended = self.ends(&ids);
            return (ids, ended);
        }
        (ids, true)
    }

    fn ends(&self, ids: &[u32]) -> bool {
        ids.last().is_some_and(|id| self.tokenizer.stop_tokens().contains(id))
    }

    fn text(&self, text: &str) -> RowResult<EncodedRow> {
        let encoded = self.tokenizer.encode_bare(text).map_err(refused)?;
        let (ids, ended) = self.closed(text, encoded);
        let tokens = self.tokenizer.with_bos(ids);
        if tokens.len() < 2 {
            return Err(RowError::OneTokenText);
        }
        let trained = (0..tokens.len()).map(|index| index > 0).collect();
        Ok(EncodedRow::of(vec![Document::plain(tokens, trained)], &[ended]))
    }

    fn tokens(&self, ids: Vec<u32>, mut trained: Vec<bool>, mut weights: Option<Vec<f32>>) -> EncodedRow {
        if self.train_on == TrainOn::All {
            weights = None;
            trained.iter_mut().skip(1).for_each(|trained| *trained = true);
        }
        // A turn is a run of trained tokens; its last one says whether it ends.
        let mut ended = Vec::new();
        for index in 0..ids.len() {
            if trained[index] && trained.get(index + 1) != Some(&true) {
                ended.push(self.ends(&ids[..=index]));
            }
        }
        EncodedRow::of(vec![Document { weights, ..Document::plain(ids, trained) }], &ended)
    }

    /// Prompt and completion of a preference row.
    fn prompted(&mut self, prompt: &Prompt, completion: Vec<Message>, extras: &Extras) -> RowResult<Split> {
        if let (Prompt::Text(text), [answer], false) =
            (prompt, completion.as_slice(), self.tokenizer.has_chat_template())
        {
            return self.plain_split(text, &answer.content);
        }
        let mut messages = prompt.clone().into_messages();
        messages.iter_mut().for_each(|message| message.weight = 0.0);
        if completion.iter().any(|message| message.weight != 0.0 && message.weight != 1.0) {
            return Err(RowError::PartialWeight);
        }
        messages.extend(completion);
        let (text, turns) = self.render(&messages, extras, true)?;
        let (Some((first, _)), Some((last, _))) = (turns.first().cloned(), turns.last().cloned()) else {
            return Err(RowError::UntrainedCompletion);
        };
        // One span from the completion's start to its last end of turn.
        let whole = Turn { start: first.start, ..last };
        let document = self.document(&text, &[(whole, 1.0)], true)?;
        let from = document.trained.iter().position(|&trained| trained).unwrap_or(0);
        let to = document.trained.iter().rposition(|&trained| trained).map_or(0, |last| last + 1);
        if from == 0 || to <= from {
            return Err(RowError::EmptyPrompt);
        }
        Ok(Split {
            prompt: document.tokens[..from].to_vec(),
            completion: document.tokens[from..to].to_vec(),
            ended: document.ended == document.turns,
        })
    }
}

#[cfg(test)]
mod tests;
