//! What a run on preferences has learnt, measured on the held-out rows, in words
//! for people who have not met accuracy and margin.

use finetuned_engine::Summary;

/// One number before and after training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    /// Before the first step.
    pub before: f64,
    /// After the last step.
    pub after: f64,
}

/// The objective's held-out numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preferences {
    /// Share of the pairs whose preferred answer has the higher reward; none where
    /// answers are labelled one by one (KTO).
    pub accuracy: Option<Change>,
    /// The preferred answers' reward less the others', in the mean.
    pub margin: Change,
}

impl Preferences {
    /// None where the run did not train on preferences, or held nothing out.
    pub fn of(summary: &Summary) -> Option<Preferences> {
        let number = |when: &str, name: &str| summary.extra.get(when)?.get(name)?.as_f64();
        let change = |name: &str| {
            Some(Change { before: number("held_out_before", name)?, after: number("held_out_after", name)? })
        };
        let apart = || {
            let (chosen, rejected) = (change("rewards/chosen")?, change("rewards/rejected")?);
            Some(Change { before: chosen.before - rejected.before, after: chosen.after - rejected.after })
        };
        Some(Preferences { accuracy: change("rewards/accuracies"), margin: change("rewards/margins").or_else(apart)? })
    }

    /// Whether the run began as its own reference, so that there was nothing to
    /// prefer by: rewards are what training adds to that.
    pub fn began_even(&self) -> bool {
        self.margin.before.abs() < 1e-5
    }

    /// `accuracy 52% before, 78% after`, or what there is to say of the start.
    pub fn accuracy_words(&self) -> Option<String> {
        let Change { before, after } = self.accuracy?;
        let after = format!("{:.0}%", 100.0 * after);
        Some(match self.began_even() {
            true => format!("{after} after (before: none, the model starts as its own reference)"),
            false => format!("{:.0}% before, {after} after", 100.0 * before),
        })
    }

    /// `0.000 before, 0.412 after`.
    pub fn margin_words(&self) -> String {
        // A rounding error below zero is no "-0.000".
        let before = if self.began_even() { 0.0 } else { self.margin.before };
        format!("{before:.3} before, {:.3} after", self.margin.after)
    }

    /// What accuracy means.
    pub fn accuracy_help(&self) -> &'static str {
        match self.began_even() {
            true => {
                "share of the held-out pairs in which training has raised the preferred answer above the other; 50% is chance"
            }
            false => "share of the held-out pairs in which the preferred answer has the higher reward; 50% is chance",
        }
    }

    /// What the margin means.
    pub fn margin_help(&self) -> &'static str {
        match self.began_even() {
            true => "by how much, in the mean: the log of how much likelier, times beta",
            false => "the preferred answers' reward less the others', in the mean",
        }
    }

    /// Lines for the receipt and for the terminal; `indent` is the width of their
    /// first column.
    pub fn lines(&self, indent: usize) -> String {
        let mut text = String::new();
        let mut line = |name: &str, words: &str, help: &str| {
            text += &format!("{name:<indent$}{words}\n{:indent$}{help}\n", "");
        };
        if let Some(words) = self.accuracy_words() {
            line("accuracy", &words, self.accuracy_help());
        }
        line("margin", &self.margin_words(), self.margin_help());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(before: serde_json::Value, after: serde_json::Value) -> Summary {
        Summary {
            steps: 1,
            tokens: 1,
            trained_tokens: 1,
            seconds: 1.0,
            first_loss: None,
            last_loss: None,
            validation_before: None,
            validation_after: None,
            kept_step: 1,
            stopped_early: false,
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
        let lines = Preferences::of(&summary(before, after)).unwrap().lines(10);
        assert!(lines.starts_with("accuracy  78% after (before: none"), "{lines}");
        assert!(lines.contains("\nmargin    0.000 before, 0.412 after\n"), "{lines}");
    }

    #[test]
    fn methods_without_a_reference_have_both_numbers() {
        let before = serde_json::json!({"rewards/accuracies": 0.5, "rewards/margins": -0.2});
        let after = serde_json::json!({"rewards/accuracies": 0.75, "rewards/margins": 0.1});
        let lines = Preferences::of(&summary(before, after)).unwrap().lines(10);
        assert!(lines.contains("50% before, 75% after") && lines.contains("-0.200 before, 0.100 after"), "{lines}");
    }

    #[test]
    fn labelled_answers_have_a_margin_alone() {
        let numbers = |chosen: f64| serde_json::json!({"rewards/chosen": chosen, "rewards/rejected": 0.0});
        let preferences = Preferences::of(&summary(numbers(0.0), numbers(0.5))).unwrap();
        assert_eq!(preferences.accuracy, None);
        assert_eq!(preferences.margin.after, 0.5);
        assert_eq!(Preferences::of(&summary(serde_json::json!({}), serde_json::json!({}))), None);
    }
}
