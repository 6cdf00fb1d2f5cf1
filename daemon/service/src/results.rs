//! What a run has learnt beside the loss, measured on the validation rows, in words
//! for people who have not met the metrics; and how the rows of its dataset add up.

use finetuned_data::DatasetReport;
use finetuned_engine::Summary;
use finetuned_engine::metrics::{
    Change, METRICS, Metric, REWARD_ACCURACY, REWARD_CHOSEN, REWARD_MARGIN, REWARD_REJECTED,
};

use crate::words::printable;

/// One metric before and after training.
#[derive(Debug, Clone, PartialEq)]
pub struct Learnt {
    /// What it is called: `accuracy`.
    pub label: &'static str,
    /// `52% before, 78% after`.
    pub words: String,
    /// `52% → 78%`.
    pub short: String,
    /// What it means.
    pub help: &'static str,
}

/// What the run's validations measured of each metric that is told as a result.
pub fn learnt(summary: &Summary) -> Vec<Learnt> {
    let margin = margin(summary);
    // The run began as its own reference, so that there was nothing to prefer by:
    // rewards are what training adds to that.
    let began_even = margin.is_some_and(|margin| margin.before.abs() < 1e-5);
    let one = |metric: &&Metric| {
        let label = metric.result?;
        let change = if **metric == REWARD_MARGIN { margin? } else { summary.change(metric)? };
        Some(match began_even {
            true if **metric == REWARD_ACCURACY => accuracy_from_nothing(label, change),
            true if **metric == REWARD_MARGIN => Learnt {
                help: "by how much, in the mean: the log of how much likelier, times beta",
                // A rounding error below zero is no "-0.000".
                ..plain(metric, label, Change { before: 0.0, ..change })
            },
            _ => plain(metric, label, change),
        })
    };
    METRICS.iter().filter_map(one).collect()
}

fn plain(metric: &Metric, label: &'static str, change: Change) -> Learnt {
    let (before, after) = (metric.format.write(change.before), metric.format.write(change.after));
    Learnt {
        label,
        words: format!("{before} before, {after} after"),
        short: format!("{before} → {after}"),
        help: metric.help,
    }
}

fn accuracy_from_nothing(label: &'static str, change: Change) -> Learnt {
    let after = REWARD_ACCURACY.format.write(change.after);
    Learnt {
        label,
        words: format!("{after} after (before: none, the model starts as its own reference)"),
        short: after,
        help: "share of the validation pairs in which training has raised the preferred answer above the other; 50% is chance",
    }
}

/// The margin; from its two sides if answers are labelled one by one (KTO).
fn margin(summary: &Summary) -> Option<Change> {
    summary.change(&REWARD_MARGIN).or_else(|| {
        let (chosen, rejected) = (summary.change(&REWARD_CHOSEN)?, summary.change(&REWARD_REJECTED)?);
        Some(Change { before: chosen.before - rejected.before, after: chosen.after - rejected.after })
    })
}

/// Lines for the receipt and for the terminal; `indent` is the width of their first
/// column.
pub fn lines(summary: &Summary, indent: usize) -> String {
    let line = |result: &Learnt| format!("{:<indent$}{}\n{:indent$}{}\n", result.label, result.words, "", result.help);
    learnt(summary).iter().map(line).collect()
}

/// The counts of a dataset, each with its name: every row is in one of them.
pub fn dataset_counts(report: &DatasetReport) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let counts = report.row_counts();
    match report.validation_counts {
        Some(validation) => {
            lines.push(("rows", counts.to_string()));
            lines.push(("validation", validation.to_string()));
        }
        None => {
            lines.push(("rows", counts.to_string()));
            lines.push(("validation", format!("{} of the used rows, set aside", report.validation_rows)));
        }
    }
    lines.push(("tokens", format!("{} ({} trained)", report.tokens, report.trained_tokens)));
    lines.push(("longest row", format!("{} tokens", report.longest)));
    let what = if report.duplicates_dropped { "left out" } else { "kept" };
    let what = if report.duplicates > 0 { format!(" ({what})") } else { String::new() };
    lines.push(("duplicates", format!("{}{what}", report.duplicates)));
    let lost = match report.tokens_left_out {
        0 => String::new(),
        tokens if report.is_uncounted => format!(": at least {tokens} tokens lost"),
        tokens => format!(": {tokens} tokens lost"),
    };
    lines.push((
        "too long",
        format!(
            "{} left out, {} cut, {} cut away{lost}",
            report.dropped_too_long, report.truncated, report.dropped_cut_away
        ),
    ));
    if report.without_end_of_turn > 0 {
        lines.push(("without an end", format!("{} rows", report.without_end_of_turn)));
    }
    if !report.unused_keys.is_empty() {
        let key = |(key, rows): (&String, &usize)| format!("`{}` in {rows}", printable(key));
        let keys: Vec<String> = report.unused_keys.iter().map(key).collect();
        lines.push(("keys not used", format!("{} rows", keys.join(", "))));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use finetuned_engine::Tally;

    fn summary(before: serde_json::Value, after: serde_json::Value) -> Summary {
        Summary {
            steps: 1,
            tally: Tally::default(),
            validation_after: None,
            kept_step: 1,
            peak_bytes: 0,
            output: String::new(),
            reload_difference: 0.0,
            extra: serde_json::Map::from_iter([
                ("held_out_before".to_string(), before),
                ("held_out_after".to_string(), after),
            ]),
        }
    }

    #[test]
    fn dpo_begins_without_a_preference() {
        let before = serde_json::json!({"rewards/accuracies": 0.3, "rewards/margins": -1e-7});
        let after = serde_json::json!({"rewards/accuracies": 0.781, "rewards/margins": 0.4121});
        let lines = lines(&summary(before, after), 10);
        assert!(lines.starts_with("accuracy  78% after (before: none"), "{lines}");
        assert!(lines.contains("\nmargin    0.000 before, 0.412 after\n"), "{lines}");
    }

    #[test]
    fn methods_without_a_reference_have_both_numbers() {
        let before = serde_json::json!({"rewards/accuracies": 0.5, "rewards/margins": -0.2});
        let after = serde_json::json!({"rewards/accuracies": 0.75, "rewards/margins": 0.1});
        let lines = lines(&summary(before, after), 10);
        assert!(lines.contains("50% before, 75% after") && lines.contains("-0.200 before, 0.100 after"), "{lines}");
    }

    #[test]
    fn labelled_answers_have_a_margin_alone() {
        let numbers = |chosen: f64| serde_json::json!({"rewards/chosen": chosen, "rewards/rejected": 0.0});
        let learnt = learnt(&summary(numbers(0.0), numbers(0.5)));
        assert_eq!(learnt.iter().map(|result| result.label).collect::<Vec<_>>(), ["margin"]);
        assert_eq!(learnt[0].words, "0.000 before, 0.500 after");
        assert_eq!(super::learnt(&summary(serde_json::json!({}), serde_json::json!({}))), []);
    }

    #[test]
    fn rows_to_imitate_have_a_token_accuracy() {
        let before = serde_json::json!({"mean_token_accuracy": 0.41});
        let after = serde_json::json!({"mean_token_accuracy": 0.58, "a_plugins_own": 1.0});
        let lines = lines(&summary(before, after), 10);
        assert!(lines.starts_with("accuracy  41% before, 58% after\n          share of the trained tokens"), "{lines}");
    }
}
