//! The places in a rendered conversation at which the assistant speaks.
//!
//! They are found from renderings, never from marker strings. The text before a
//! turn is the rendering of the messages before it with a generation prompt, so
//! training continues exactly the text that generation starts from. Some templates
//! render earlier turns differently once later ones follow (Qwen3 strips their
//! thoughts, Mistral moves the system text). There the same conversation is
//! rendered with another text in the turn, and the place is where the two differ.

use std::ops::Range;

use minijinja::Value;

use crate::row_error::{RowError, RowResult};
use crate::template::{ChatTemplate, Extras};

/// A turn of the assistant in the rendered text, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Index of its message.
    pub message: usize,
    /// Behind the turn's header: the first byte that the model generates.
    pub start: usize,
    /// The end of the message's own text; the end-of-turn token follows.
    pub text_end: usize,
    /// The end-of-turn token begins before this byte.
    pub bound: usize,
}

/// Stands in for a message's text. A Unicode noncharacter: no text has it.
const STAND_IN: &str = "\u{fdd2}";

/// Finds the turns of `wanted` (indices of assistant messages, rising) in
/// `full`, the rendering of all `messages`, the last of which is the
/// assistant's.
///
/// `contents` are the messages' texts.
///
/// # Errors
/// A turn that cannot be found.
pub(crate) fn find_turns(
    template: &ChatTemplate,
    messages: &[Value],
    contents: &[&str],
    extras: &Extras,
    full: &str,
    wanted: &[usize],
) -> RowResult<Vec<Turn>> {
    let finder = Finder { template, messages, contents, extras, full };
    let mut turns = Vec::with_capacity(wanted.len());
    for &index in wanted {
        match finder.turn(index) {
            Some(turn) => turns.push(turn),
            None => return finder.tagged(wanted, index),
        }
    }
    Ok(turns)
}

struct Finder<'a> {
    template: &'a ChatTemplate,
    messages: &'a [Value],
    contents: &'a [&'a str],
    extras: &'a Extras,
    full: &'a str,
}

impl Finder<'_> {
    fn turn(&self, index: usize) -> Option<Turn> {
        let full = self.full;
        let before = self.template.render(&self.messages[..index], self.extras, true).ok();
        let mut place: Option<Option<Range<usize>>> = None;
        let start = match &before {
            Some(before) if full.starts_with(before.as_str()) => before.len(),
            _ => {
                let text = place.get_or_insert_with(|| self.text_place(index)).clone()?;
                self.behind_header(index, before.as_deref(), text.start)
            }
        };
        if index + 1 == self.messages.len() {
            if start >= full.len() {
                return None;
            }
            let text_end = self.text_end(index, start, full.len());
            return Some(Turn { message: index, start, text_end, bound: full.len() });
        }
        let closed = self.template.render(&self.messages[..=index], self.extras, false).ok();
        if let Some(closed) = closed
            && closed.len() > start
            && full.starts_with(&closed)
        {
            let text_end = self.text_end(index, start, closed.len());
            return Some(Turn { message: index, start, text_end, bound: closed.len() });
        }
        // The turn's end is known by what follows it: the text of the next
        // message that can be found.
        let own = place.unwrap_or_else(|| self.text_place(index));
        let least = own.as_ref().map_or(start, |text| text.end.max(start));
        let next = (index + 1..self.messages.len())
            .find_map(|later| self.text_place(later).filter(|text| text.start >= least));
        let bound = match (&next, &own) {
            (Some(next), _) => next.start,
            (None, Some(_)) => self.full.len(),
            (None, None) => return None,
        };
        let text_end = match own {
            Some(text) => text.end.max(start),
            None => self.text_end(index, start, bound),
        };
        Some(Turn { message: index, start, text_end, bound })
    }

    /// The place of message `index`'s text in the full rendering: what changes if
    /// another text takes its place.
    fn text_place(&self, index: usize) -> Option<Range<usize>> {
        let mut messages = self.messages.to_vec();
        messages[index] = Value::from_pairs(
            self.messages[index]
                .try_iter()
                .ok()?
                .filter(|key| key.as_str() != Some("content"))
                .filter_map(|key| Some((key.clone(), self.messages[index].get_item(&key).ok()?)))
                .chain([(Value::from("content"), Value::from(STAND_IN))]),
        );
        let changed = self.template.render(&messages, self.extras, false).ok()?;
        let (before, after) = changed.split_once(STAND_IN)?;
        let fits = before.len() + after.len() <= self.full.len()
            && self.full.starts_with(before)
            && self.full.ends_with(after);
        fits.then(|| before.len()..self.full.len() - after.len())
    }

    /// The turn's start, from the start of its text: behind the generation prompt
    /// if that stands right before the text (perhaps with an empty thought
    /// between), otherwise the text's own start.
    fn behind_header(&self, index: usize, before: Option<&str>, text_start: usize) -> usize {
        let bare = self.template.render(&self.messages[..index], self.extras, false).ok();
        let header = match (before, &bare) {
            (Some(before), Some(bare)) => before.strip_prefix(bare.as_str()).unwrap_or_default().to_owned(),
            // The turn is the first message, and the template needs one before it.
            _ => self.usual_header().unwrap_or_default(),
        };
        if header.is_empty() {
            return text_start;
        }
        self.full[..text_start].rfind(&header).map_or(text_start, |at| {
            let behind = at + header.len();
            let between = &self.full[behind..text_start];
            if between.contains(&header) || between.len() > 64 { text_start } else { behind }
        })
    }

    /// The text that the template puts before an answer to a plain question.
    fn usual_header(&self) -> Option<String> {
        let question = [Value::from_pairs([("role", "user"), ("content", "?")])];
        let bare = self.template.render(&question, self.extras, false).ok()?;
        let open = self.template.render(&question, self.extras, true).ok()?;
        open.strip_prefix(&bare).map(str::to_owned)
    }

    /// The end of the message's text within its turn. If the template changed the
    /// text beyond recognition, the turn's start: then the first end-of-turn token
    /// of the turn counts.
    fn text_end(&self, index: usize, start: usize, bound: usize) -> usize {
        let turn = &self.full[start..bound];
        let text = self.contents[index];
        let tail = text.rsplit("</think>").next().unwrap_or(text);
        [text, text.trim(), tail.trim()]
            .into_iter()
            .filter(|text| !text.is_empty())
            .find_map(|text| turn.find(text).map(|at| start + at + text.len()))
            .unwrap_or(start)
    }

    /// The blocks that the template itself marks with `{% generation %}`, if the
    /// other ways fail.
    fn tagged(&self, wanted: &[usize], failed: usize) -> RowResult<Vec<Turn>> {
        let lost = || RowError::TurnNotShown(failed + 1);
        if !self.template.is_tagged() {
            return Err(lost());
        }
        let spans = self
            .template
            .generation_spans(self.messages, self.extras)
            .map_err(|error| RowError::Refused(error.to_string()))?;
        let answers: Vec<usize> = (0..self.messages.len())
            .filter(|&index| {
                let role = self.messages[index].get_attr("role");
                role.is_ok_and(|role| role.as_str() == Some("assistant"))
            })
            .collect();
        if spans.len() != answers.len() {
            return Err(lost());
        }
        let turns = answers.iter().zip(spans).filter(|(index, _)| wanted.contains(index));
        Ok(turns
            .map(|(&message, span)| Turn {
                message,
                start: span.start,
                text_end: self.text_end(message, span.start, span.end),
                bound: span.end,
            })
            .collect())
    }
}
