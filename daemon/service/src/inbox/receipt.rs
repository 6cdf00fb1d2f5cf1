//! The receipt beside a dataset: what became of it, in plain text, rewritten as
//! its job goes on.

use std::fmt::Write;
use std::path::Path;

use finetuned_data::{BadRow, DatasetReport};

use crate::error::{Context, Error, Result};
use crate::filesystem::{display, replace_file};
use crate::results;
use crate::store::{FileRow, Job, State, timestamp};
use crate::words::printable;

/// The text of a receipt. `is_copy`: another file of the same content and recipe
/// came first.
pub fn render(file: &FileRow, job: Option<&Job>, is_copy: bool, now_ms: u64) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}", file.path.display());
    match job {
        Some(job) => of_job(&mut text, job, is_copy),
        None => {
            let why = file.refused.as_deref().unwrap_or("no decision yet");
            let _ = writeln!(
                text,
                "REFUSED: {why}\n\nIt is looked at again when the file, its .toml or the folder's recipe.toml changes."
            );
        }
    }
    let _ = writeln!(text, "\nwritten {}", timestamp(now_ms));
    text
}

/// A receipt for what is not a dataset yet (a folder without dataset.toml).
pub fn remark(path: &Path, words: &str, now_ms: u64) -> String {
    format!("{}\nWAITING: {words}\n\nwritten {}\n", path.display(), timestamp(now_ms))
}

fn of_job(text: &mut String, job: &Job, is_copy: bool) {
    let state = match job.state {
        State::Succeeded => "DONE".to_string(),
        state => state.name().to_uppercase(),
    };
    let _ = writeln!(text, "{state}: job {}", job.id);
    if is_copy {
        let _ =
            writeln!(text, "  the same data and recipe as job {} ({}), so it is not trained again", job.id, job.name);
    }
    let _ = writeln!(text);
    match job.state {
        State::Succeeded => of_success(text, job),
        State::Failed => {
            let kind = job.error_kind.map_or(String::new(), |kind| format!(" ({kind})"));
            let _ =
                writeln!(text, "error{kind}\n  {}", job.error.as_deref().unwrap_or("unknown").replace('\n', "\n  "));
            if let Some(step) = job.progress.checkpoint_step {
                let _ = writeln!(
                    text,
                    "  The checkpoint of step {step} is kept: `finetune retry {}` goes on from it.",
                    job.id
                );
            } else {
                let _ = writeln!(text, "  Mend the cause, then: finetune retry {}", job.id);
            }
        }
        State::Running => {
            let progress = &job.progress;
            let _ = writeln!(text, "step {} of {}", progress.step, progress.total_steps);
            if let Some(loss) = progress.loss {
                let _ = writeln!(text, "loss {loss:.4}");
            }
        }
        State::Paused => {
            if let Some(why) = &job.error {
                let _ = writeln!(text, "{}", why.replace('\n', "\n  "));
            }
            let _ = writeln!(text, "paused at step {}: finetune resume {}", job.progress.step, job.id);
        }
        State::Cancelled => {
            let _ =
                writeln!(text, "cancelled at step {}: `finetune retry {}` starts it again", job.progress.step, job.id);
        }
        State::Queued | State::Preparing => {
            let phase = job.progress.phase.as_deref().filter(|_| job.state == State::Preparing);
            let _ = writeln!(text, "{}", phase.unwrap_or("waits for its turn: finetune status"));
        }
    }
    let recipe = &job.recipe;
    let _ = writeln!(
        text,
        "\nbase      {}\nmethod    {}\nobjective {}",
        recipe.base,
        recipe.method.name(),
        recipe.loss.name
    );
    for plugin in &job.plugins {
        let hash = &plugin.library.sha256;
        let hash = hash.get(..12).unwrap_or(hash);
        let _ = writeln!(
            text,
            "plugin    {} {} ({hash}, {})",
            plugin.name,
            plugin.version,
            display(&plugin.library.origin)
        );
    }
    let _ = writeln!(text, "sha256    {}\nclaimed   {}", job.data_sha256, timestamp(job.created_ms));
    if let Some(report) = &job.report {
        of_dataset(text, report);
    }
}

fn of_success(text: &mut String, job: &Job) {
    let _ = writeln!(text, "output    {}", job.out.display());
    let report = job.out.join(crate::report::FILE);
    if report.exists() {
        let _ = writeln!(text, "report    {}", report.display());
    }
    let Some(summary) = &job.summary else { return };
    if let (Some(before), Some(after)) = (summary.tally.validation_before, summary.validation_after) {
        let fall = 100.0 * (before - after) / before;
        let _ = writeln!(text, "val loss  {before:.4} before, {after:.4} after ({fall:.0}% lower)");
    }
    text.push_str(&results::lines(summary, 10));
    if let (Some(first), Some(last)) = (summary.tally.first_loss, summary.tally.last_loss) {
        let _ = writeln!(text, "training  loss {first:.4} first step, {last:.4} last step");
    }
    let _ = writeln!(
        text,
        "took      {} steps, {} trained tokens, {}",
        summary.steps,
        summary.tally.trained_tokens,
        crate::words::seconds(summary.tally.seconds)
    );
    if summary.kept_step != summary.steps {
        let _ = writeln!(text, "kept      the weights of step {} (best validation)", summary.kept_step);
    }
    let _ = writeln!(text, "\ntry it    finetune generate --model {} --adapter {}", job.recipe.base, display(&job.out));
}

/// What was found in the dataset, with three rows as the model sees them; the
/// trained tokens are between « and ».
pub fn of_dataset(text: &mut String, report: &DatasetReport) {
    let _ = writeln!(text, "\ndataset\n  format          {}", report.format);
    for (name, words) in results::dataset_counts(report) {
        let _ = writeln!(text, "  {name:<15} {words}");
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "  note            {}", printable(warning));
    }
    of_bad_rows(text, "bad rows", &report.bad_rows, report.bad_row_count);
    let bad = report.validation_counts.map_or(report.validation_bad_rows.len(), |counts| counts.bad);
    of_bad_rows(text, "bad validation rows", &report.validation_bad_rows, bad);
    if !report.samples.is_empty() {
        let _ = writeln!(text, "\nrows as the model sees them; «trained»");
    }
    for sample in &report.samples {
        let mut row = String::new();
        for (piece, trained) in &sample.pieces {
            let piece = printable(piece);
            if *trained {
                let _ = write!(row, "«{piece}»");
            } else {
                row.push_str(&piece);
            }
        }
        let _ = writeln!(text, "  line {}:\n    {}", sample.line, row.trim_end().replace('\n', "\n    "));
    }
}

fn of_bad_rows(text: &mut String, title: &str, listed: &[BadRow], count: usize) {
    if count == 0 {
        return;
    }
    let _ = writeln!(text, "\n{title}: {count}");
    for row in listed {
        let _ = writeln!(text, "  line {}: {}", row.line, printable(&row.reason));
    }
    if count > listed.len() {
        let _ = writeln!(text, "  … and {} more", count - listed.len());
    }
}

/// A receipt without its last line, to compare two.
pub(super) fn without_time(text: &str) -> &str {
    text.rfind("\nwritten ").map_or(text, |end| &text[..end])
}

/// Writes a receipt into the inbox. Its folder must be a folder of ours, not a
/// link to somewhere else.
///
/// # Errors
/// The inbox cannot be written to, or `_receipts` is not a folder.
pub fn write(inbox: &Path, receipt: &Path, text: &str) -> Result<()> {
    let path = inbox.join(receipt);
    let folder = path.parent().unwrap_or(inbox);
    match std::fs::symlink_metadata(folder) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(Error::conflict(format!("{} is not a folder", folder.display()))),
        Err(_) => std::fs::create_dir(folder).with_context(|| format!("cannot make {}", folder.display()))?,
    }
    replace_file(&path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use finetuned_data::{RenderedSample, RowCounts};

    #[test]
    fn the_dataset_part_shows_bad_rows_and_trained_tokens() {
        let report = DatasetReport {
            format: "chat messages".into(),
            rows: 3,
            bad_rows: vec![BadRow { line: 7, reason: "no assistant turn".into() }],
            bad_row_count: 120,
            samples: vec![RenderedSample {
                line: 1,
                pieces: vec![("user: hi\n".into(), false), ("hello".into(), true)],
            }],
            ..DatasetReport::default()
        };
        let mut text = String::new();
        of_dataset(&mut text, &report);
        for part in ["chat messages", "line 7: no assistant turn", "… and 119 more", "user: hi\n    «hello»"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn every_row_and_key_is_accounted_for() {
        let report = DatasetReport {
            rows: 9,
            used: 3,
            bad_row_count: 2,
            dropped_too_long: 1,
            dropped_untrained: 3,
            tokens_left_out: 5000,
            unused_keys: [("title".to_owned(), 3)].into(),
            validation_counts: Some(RowCounts { rows: 2, used: 1, bad: 1, ..RowCounts::default() }),
            validation_bad_rows: vec![BadRow { line: 2, reason: "no `role`".into() }],
            ..DatasetReport::default()
        };
        let mut text = String::new();
        of_dataset(&mut text, &report);
        for part in [
            "9 rows: 3 used, 6 left out (2 bad, 1 too long, 3 without a message to train on)",
            "validation      2 rows: 1 used, 1 left out (1 bad)",
            "1 left out, 0 cut, 0 cut away: 5000 tokens lost",
            "keys not used   `title` in 3 rows",
            "bad validation rows: 1\n  line 2: no `role`",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_terminal_obeys_no_row() {
        let sample = RenderedSample { line: 1, pieces: vec![("ok\0\u{1b}[31m!\u{9b}\t\n".into(), true)] };
        let mut text = String::new();
        of_dataset(&mut text, &DatasetReport { samples: vec![sample], ..DatasetReport::default() });
        assert!(text.contains("«ok␀␛[31m!\u{fffd}\t"), "{text}");
        assert!(!text.contains(['\0', '\u{1b}', '\u{9b}']));
    }

    #[test]
    fn a_refusal_says_why_and_what_next() {
        let file = FileRow {
            inbox: "/i".into(),
            path: "a.jsonl".into(),
            stamp: String::new(),
            companions: String::new(),
            sha256: None,
            job: None,
            refused: Some("a.toml:3: unknown key".into()),
            receipt: "_receipts/a.txt".into(),
        };
        let text = render(&file, None, false, 0);
        assert!(text.contains("REFUSED: a.toml:3: unknown key"));
        assert!(text.contains("looked at again"));
    }

    #[test]
    fn a_link_in_place_of_the_receipts_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("elsewhere")).unwrap();
        std::fs::create_dir(dir.path().join("in")).unwrap();
        std::os::unix::fs::symlink("../elsewhere", dir.path().join("in/_receipts")).unwrap();
        assert!(write(&dir.path().join("in"), Path::new("_receipts/a.txt"), "x").is_err());
        assert_eq!(std::fs::read_dir(dir.path().join("elsewhere")).unwrap().count(), 0);
    }
}
