//! One file's rows as examples, with everything counted.

use std::collections::HashSet;
use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::columns::{Columns, reward};
use crate::encode::{EncodedRow, encode};
use crate::error::{DataError, Result};
use crate::example::{Document, Example, Examples, Role};
use crate::format::{self, Content, Format, Layout, Row};
use crate::notes::{Fact, Facts, rows, verb};
use crate::options::{DataOptions, TooLong};
use crate::report::DatasetReport;
use crate::row_error::{RowError, RowResult};
use crate::rows::{ParsedRow, RawRow, open};
use crate::tokenizer::ChatTokenizer;

/// Most rows that are parsed before a format is settled on, and most that are encoded
/// at once.
const FIRST_BATCH: usize = 64;
const BATCH: usize = 1024;

/// Most bytes of rows that are encoded at once, but for a single row: a few huge rows
/// must not lie in memory together.
const BATCH_BYTES: usize = 8 << 20;

/// A file read to its end.
pub(crate) struct Intake {
    pub examples: Examples,
    /// One hash per example, of its documents before any cut.
    pub hashes: Vec<u128>,
    pub report: DatasetReport,
}

/// Reads a file.
///
/// # Errors
/// [`DataError::Read`]; [`DataError::File`] if no row can be used, with the
/// cause; [`DataError::TooLong`] if such rows are to be refused.
pub(crate) fn take_in(path: &Path, tokenizer: &ChatTokenizer, options: &DataOptions) -> Result<Intake> {
    let mut reader = open(path)?;
    let mut taker = Taker::new(path, tokenizer, options);
    let mut size = FIRST_BATCH;
    while taker.wants_more() {
        let (mut batch, mut bytes) = (Vec::with_capacity(size), 0);
        while batch.len() < size && bytes < BATCH_BYTES {
            let Some(row) = reader.next()? else { break };
            bytes += row.bytes;
            batch.push(row);
        }
        if batch.is_empty() {
            break;
        }
        taker.take(batch)?;
        size = BATCH;
    }
    taker.report.sha256 = reader.finish()?;
    taker.finish()
}

struct Taker<'a> {
    path: &'a Path,
    tokenizer: &'a ChatTokenizer,
    options: &'a DataOptions,
    format: Option<&'static Format>,
    columns: Columns<'a>,
    seen: HashSet<u128>,
    made: Vec<Example>,
    hashes: Vec<u128>,
    report: DatasetReport,
    shortest_too_long: usize,
    earliest_trained: usize,
    facts: Facts,
    /// Rows by the format that they are in, with the first line of each.
    formats: Vec<(&'static Format, usize, usize)>,
}

/// A row with less text is counted to its last token, however long it is.
const SMALLEST_UNCOUNTED: usize = 1 << 20;

/// A row of turns with more text is left out rather than cut: its template and its
/// tokens would take gigabytes.
const LARGEST_CUT: usize = 8 << 20;

/// What became of a row.
enum Taken {
    Row {
        row: EncodedRow,
        /// Whether its text was shortened before it became tokens: more is lost than the
        /// cut takes.
        is_shortened: bool,
    },
    /// No message of it is to be trained on.
    Untrained,
    /// It has at least so many tokens, more than fit.
    TooLong(usize),
}

impl<'a> Taker<'a> {
    fn new(path: &'a Path, tokenizer: &'a ChatTokenizer, options: &'a DataOptions) -> Self {
        Self {
            path,
            tokenizer,
            options,
            format: None,
            columns: Columns::new(&options.columns),
            seen: HashSet::new(),
            made: Vec::new(),
            hashes: Vec::new(),
            report: DatasetReport { duplicates_dropped: options.drop_duplicates, ..DatasetReport::default() },
            shortest_too_long: usize::MAX,
            earliest_trained: usize::MAX,
            facts: Facts::default(),
            formats: Vec::new(),
        }
    }

    fn wants_more(&self) -> bool {
        self.options.max_rows.is_none_or(|most| self.made.len() < most)
    }

    fn take(&mut self, batch: Vec<RawRow>) -> Result<()> {
        let parsed: Vec<(usize, ParsedRow)> = batch.into_par_iter().map(|row| (row.line, (row.parse)())).collect();
        if self.format.is_none() {
            self.format = most_frequent(parsed.iter().filter_map(|(_, row)| row.as_ref().ok()));
        }
        for (line, row) in parsed.iter().filter_map(|(line, row)| Some((*line, row.as_ref().ok()?))) {
            self.columns.note(row);
            self.note_format(line, row);
        }
        let (tokenizer, options, format) = (self.tokenizer, self.options, self.format);
        let encoded: Vec<(usize, RowResult<Taken>)> = parsed
            .into_par_iter()
            .map(|(line, row)| {
                let row = row.and_then(|row| match format {
                    None => Err(format::unknown(&row, None)),
                    Some(format) => read(tokenizer, options, format, &row),
                });
                (line, row)
            })
            .collect();
        for (line, row) in encoded {
            if !self.wants_more() {
                break;
            }
            self.report.rows += 1;
            match row {
                Err(error) => self.report.add_bad_row(line, &error),
                Ok(Taken::Untrained) => self.report.dropped_untrained += 1,
                Ok(Taken::Row { row, is_shortened }) => {
                    self.report.is_uncounted |= is_shortened;
                    self.add(line, row)?;
                }
                Ok(Taken::TooLong(tokens)) => {
                    self.report.is_uncounted = true;
                    self.leave_out(line, tokens)?;
                }
            }
        }
        Ok(())
    }

    /// Counts the row's own format. A row that has the keys of the file's format is
    /// read in that.
    fn note_format(&mut self, line: usize, row: &Row) {
        let own = self.format.filter(|format| format.has_keys_of(row)).or_else(|| Format::of(row));
        let Some(own) = own else { return };
        match self.formats.iter_mut().find(|(format, ..)| *format == own) {
            Some((_, count, _)) => *count += 1,
            None => self.formats.push((own, 1, line)),
        }
    }

    /// Leaves out a row that is longer than the sequence length, or refuses it.
    fn leave_out(&mut self, line: usize, tokens: usize) -> Result<()> {
        self.report.longest = self.report.longest.max(tokens);
        self.shortest_too_long = self.shortest_too_long.min(tokens);
        let limit = self.options.sequence_length;
        if self.options.too_long == TooLong::Refuse {
            return Err(DataError::TooLong { path: self.path.to_owned(), line, tokens, limit });
        }
        self.report.dropped_too_long += 1;
        self.report.tokens_left_out += tokens;
        Ok(())
    }

    fn add(&mut self, line: usize, row: EncodedRow) -> Result<()> {
        let EncodedRow { documents, turns, ended, mut facts } = row;
        let mut example = Example { documents, line };
        let greatest = example.documents.iter().flat_map(|document| &document.tokens).max().copied();
        if let (Some(size), Some(greatest)) = (self.options.vocab_size, greatest)
            && greatest as usize >= size
        {
            let token = self.tokenizer.token_text(greatest);
            self.report.add_bad_row(line, &RowError::Vocabulary { token, id: greatest, size });
            return Ok(());
        }
        let hash = hash(&example);
        if !self.seen.insert(hash) {
            self.report.duplicates += 1;
            if self.options.drop_duplicates {
                return Ok(());
            }
        }
        let length = example.longest();
        self.report.longest = self.report.longest.max(length);
        let limit = self.options.sequence_length;
        let mut whole = ended == turns;
        if length > limit {
            if self.options.too_long != TooLong::Truncate {
                return self.leave_out(line, length);
            }
            self.shortest_too_long = self.shortest_too_long.min(length);
            let first_trained = example.documents.first().map_or(0, Document::prompt_len);
            let before = example.row_tokens();
            if !cut(&mut example, limit) {
                self.earliest_trained = self.earliest_trained.min(first_trained);
                self.report.dropped_cut_away += 1;
                self.report.tokens_left_out += before;
                return Ok(());
            }
            self.report.truncated += 1;
            self.report.tokens_left_out += before.saturating_sub(example.row_tokens());
            whole = false;
        }
        if self.options.context.is_some_and(|context| example.longest() > context) {
            facts.push(Fact::BeyondContext);
        }
        self.facts.count(facts);
        self.report.without_end_of_turn += usize::from(!whole);
        self.made.push(example);
        self.hashes.push(hash);
        Ok(())
    }

    fn finish(mut self) -> Result<Intake> {
        let Some(format) = self.format.filter(|_| !self.made.is_empty()) else {
            return Err(self.nothing_left());
        };
        self.refuse_mixture()?;
        self.report.format = format.name.to_owned();
        self.report.layout = self.layout(format.layout).to_owned();
        self.report.used = self.made.len();
        self.warn();
        let sequence_length = self.options.sequence_length;
        let examples = Examples { kind: format.kind, sequence_length, list: self.made };
        Ok(Intake { examples, hashes: self.hashes, report: self.report })
    }

    /// # Errors
    /// More rows are in another format than are used: one half of the file would be
    /// trained and the other lost.
    fn refuse_mixture(&self) -> Result<()> {
        let most =
            self.formats.iter().filter(|(format, ..)| Some(*format) != self.format).map(|(_, count, _)| count).max();
        if most.is_none_or(|most| *most <= self.made.len()) {
            return Ok(());
        }
        let written = |(format, count, line): &(&Format, usize, usize)| {
            format!("{count} {} (the first on line {line})", format.name)
        };
        let formats: Vec<String> = self.formats.iter().map(written).collect();
        Err(DataError::File {
            path: self.path.to_owned(),
            problem: format!("the rows are of several formats: {}", formats.join(", ")),
            remedy: "Put the rows of each format into a file of their own.".into(),
        })
    }

    fn layout(&self, layout: Layout) -> &'static str {
        match layout {
            Layout::Ids => "token ids as they are",
            Layout::Text => "the text as it is, with an end-of-text token",
            _ if self.tokenizer.has_chat_template() => "the model's chat template",
            Layout::Completion => "the completion right behind its prompt, with an end-of-text token",
            Layout::Conversation => "the plain layout (### User, ### Assistant): the model has no chat template",
        }
    }

    fn warn(&mut self) {
        let report = &mut self.report;
        report.unused_keys = self.facts.unused_keys();
        report.warnings.extend(self.facts.words(self.options.context.unwrap_or_default()));
        let bad = report.bad_row_count;
        if bad > report.used {
            report.warnings.push(format!("most rows cannot be used: {bad} of {}", report.rows));
        }
        if report.tokens_left_out > 0 {
            let lost = report.tokens_left_out;
            let all = (lost + self.made.iter().map(Example::row_tokens).sum::<usize>()).max(1);
            report.warnings.push(format!(
                "{}{lost} tokens ({:.0}% of the file's) are lost because rows are longer than the sequence length: raise \
                 train.sequence_length, {}",
                if report.is_uncounted { "at least " } else { "" },
                100.0 * lost as f64 / all as f64,
                match self.options.too_long {
                    TooLong::Truncate => "or cut long texts into several rows",
                    _ => "set data.too_long = \"truncate\" to keep the beginnings, or cut long texts into several rows",
                }
            ));
        }
        if self.options.max_rows == Some(report.used) {
            report.warnings.push(format!("only the first {} are used (data.max_rows)", rows(report.used)));
        }
        let without = report.without_end_of_turn;
        if without > 0 {
            let why = if report.truncated > 0 { " (a cut takes it)" } else { "" };
            report.warnings.push(format!(
                "{} a trained turn without its end-of-turn token{why}: the model does not learn to stop there",
                verb(without, "has", "have")
            ));
        }
        if self.tokenizer.folds_system() {
            report.warnings.push(
                "the chat template takes no system messages: their text is put before the first \
                 user message"
                    .into(),
            );
        }
    }

    /// Why nothing is left to train on, and what helps.
    fn nothing_left(&self) -> DataError {
        let report = &self.report;
        if let Some((name, nearest)) = self.columns.absent().filter(|_| self.format.is_some()) {
            let problem = format!("no row has the column `{name}`, which the loss asks for");
            let remedy = match nearest {
                Some(nearest) => format!("Did you mean `{nearest}`?"),
                None => format!("Give each row a number in `{name}`."),
            };
            return DataError::File { path: self.path.to_owned(), problem, remedy };
        }
        let limit = self.options.sequence_length;
        let mut causes = [
            (
                report.bad_row_count,
                report.bad_rows.first().map_or_else(String::new, |bad| {
                    format!("no row can be used; the first bad one is line {}: {}", bad.line, bad.reason)
                }),
                if self.format.is_none() {
                    format::help()
                } else {
                    "Correct the rows; `finetune data check` lists them all.".to_owned()
                },
            ),
            (
                report.dropped_too_long,
                format!("all {} are longer than the sequence length of {limit} tokens", rows(report.dropped_too_long)),
                format!(
                    "The shortest has {} tokens: raise train.sequence_length, or have rows \
                     truncated.",
                    self.shortest_too_long
                ),
            ),
            (
                report.dropped_cut_away,
                format!(
                    "cut at the sequence length of {limit} tokens, none of {} keeps a trained token",
                    rows(report.dropped_cut_away)
                ),
                format!(
                    "The earliest answer begins at token {}: raise train.sequence_length above \
                     that.",
                    self.earliest_trained.saturating_add(1)
                ),
            ),
            (
                report.dropped_untrained,
                format!(
                    "none of {} has a message to train on: `weight` or `train` turns each off",
                    rows(report.dropped_untrained)
                ),
                "Leave the key out, or set it to 1, on the answers to learn.".to_owned(),
            ),
        ];
        causes.sort_by_key(|cause| std::cmp::Reverse(cause.0));
        let [(count, mut problem, remedy), others @ ..] = causes;
        if count == 0 {
            return DataError::File {
                path: self.path.to_owned(),
                problem: "the file has no rows".into(),
                remedy: "Give it at least one row.".into(),
            };
        }
        let rest: usize = others.iter().map(|cause| cause.0).sum();
        if rest > 0 {
            problem = problem.replacen("all ", "", 1);
            problem += &format!(" (and {} otherwise unusable)", rows(rest));
        }
        DataError::File { path: self.path.to_owned(), problem, remedy }
    }
}

/// A row as documents; see [`encode`].
fn read(tokenizer: &ChatTokenizer, options: &DataOptions, format: &Format, row: &Row) -> RowResult<Taken> {
    let mut content = format.read(row, &options.columns)?;
    let (columns, reward) = (Columns::read(&options.columns, row)?, reward(row));
    // A row that cannot fit is left out, or cut, before it becomes tokens: those would
    // take many times its bytes.
    let certain = options.sequence_length.saturating_mul(tokenizer.longest_token()).max(SMALLEST_UNCOUNTED);
    let bytes = content.text_bytes();
    let mut is_shortened = false;
    if bytes > certain {
        match (&mut content, options.too_long) {
            (Content::Text(text), TooLong::Truncate) => {
                // One token more than fits stays, so that the cut is seen and counted.
                let mut end = certain + tokenizer.longest_token();
                while !text.is_char_boundary(end) {
                    end = end.saturating_sub(1);
                }
                text.truncate(end);
                is_shortened = true;
            }
            (_, TooLong::Truncate) if bytes <= LARGEST_CUT => {}
            _ => return Ok(Taken::TooLong(bytes / tokenizer.longest_token())),
        }
    }
    let Some(mut encoded) = encode(tokenizer, content, options.train_on)? else { return Ok(Taken::Untrained) };
    for document in &mut encoded.documents {
        document.reward = reward;
        document.columns.clone_from(&columns);
    }
    encoded.facts.extend(format.unused_keys(row, &options.columns).into_iter().map(Fact::UnusedKey));
    Ok(Taken::Row { row: encoded, is_shortened })
}

/// The format that most rows are in; of equally many, the first one met.
pub(crate) fn most_frequent<'r>(rows: impl Iterator<Item = &'r Row>) -> Option<&'static Format> {
    let mut counts: Vec<(&'static Format, usize)> = Vec::new();
    for format in rows.filter_map(Format::of) {
        match counts.iter_mut().find(|(known, _)| *known == format) {
            Some((_, count)) => *count += 1,
            None => counts.push((format, 1)),
        }
    }
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map(|(format, _)| format)
}

/// Cuts every document of the example at `limit` tokens. False if what is left
/// teaches nothing.
fn cut(example: &mut Example, limit: usize) -> bool {
    example.documents.iter_mut().for_each(|document| document.truncate(limit));
    let teaches = example.documents.iter().all(|document| document.trained.contains(&true));
    let [first, second] = example.documents.as_slice() else { return teaches };
    // Completions of a pair that are the same once cut tell nothing apart.
    teaches && (second.role != Role::Rejected || first.tokens != second.tokens)
}

/// A hash of everything the example teaches. The rows that are set aside for
/// validation follow from it: it must stay what it is. It leaves the reward out,
/// which rows may have without a loss that reads it.
fn hash(example: &Example) -> u128 {
    let mut hash = Sha256::new();
    let mut numbers = |numbers: &[u32]| {
        hash.update((numbers.len() as u64).to_le_bytes());
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        hash.update(bytes);
    };
    for (index, document) in example.documents.iter().enumerate() {
        if document.role == Role::Plain {
            numbers(&document.tokens);
            let trained: Vec<u32> = document.trained.iter().map(|&trained| u32::from(trained)).collect();
            numbers(&trained);
        } else {
            if index == 0 {
                numbers(document.prompt());
            }
            numbers(document.answer());
        }
        if let Some(weights) = &document.weights {
            let bits: Vec<u32> = weights.iter().map(|weight| weight.to_bits()).collect();
            numbers(&bits);
        }
    }
    if let Some(label) = example.documents.first().and_then(|document| document.label) {
        if example.documents.len() == 1 {
            // The place of a mismatched completion.
            numbers(&[]);
        }
        numbers(&[u32::from(label)]);
    }
    if let Some(document) = example.documents.first().filter(|document| !document.columns.is_empty()) {
        let halves = |column: &f64| [column.to_bits() as u32, (column.to_bits() >> 32) as u32];
        let bits: Vec<u32> = document.columns.iter().flat_map(halves).collect();
        numbers(&bits);
    }
    let digest = hash.finalize();
    digest.iter().take(16).fold(0, |sum, &byte| sum << 8 | u128::from(byte))
}
