//! The numbers that a run reports, each declared once.
//!
//! metrics.jsonl, the summary of a run, receipts, reports and the terminal read
//! these declarations. A loss plugin may report numbers beyond them: they pass
//! through by name into metrics.jsonl and the summary.
//!
//! To add a metric: declare it here, list it in [`METRICS`], and give the step or
//! the validation its value under that name.

/// Which direction is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// A lower number is better.
    Lower,
    /// A higher number is better.
    Higher,
    /// Neither says whether a run is good.
    Neither,
}

/// How a number is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// With this many digits after the point.
    Digits(usize),
    /// A share, as a whole percentage.
    Percent,
    /// `2.00e-4`, with this many digits after the point.
    Exponent(usize),
}

impl Format {
    /// The number in this format.
    pub fn write(self, value: f64) -> String {
        match self {
            Format::Digits(digits) => format!("{value:.digits$}"),
            Format::Percent => format!("{:.0}%", 100.0 * value),
            Format::Exponent(digits) => format!("{value:.digits$e}"),
        }
    }
}

/// A chart of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chart {
    /// Its title.
    pub title: &'static str,
    /// Digits after the point at its axis.
    pub digits: usize,
}

/// One number that a run reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    /// Its name in metrics.jsonl: TRL's, if TRL has it.
    pub name: &'static str,
    /// What it is, for people; with the unit.
    pub help: &'static str,
    /// Which direction is better.
    pub better: Better,
    /// How it is written.
    pub format: Format,
    /// Its label in the line of a step; `None`: the line does not show it.
    pub line: Option<&'static str>,
    /// Its chart in the report, of training and of validation.
    pub chart: Option<Chart>,
    /// Its label in a run's result, before and after training, as measured
    /// on the validation rows; `None`: it is not told there.
    pub result: Option<&'static str>,
}

impl Metric {
    /// Its name in metrics.jsonl if it was measured on the validation rows.
    pub fn validation_name(&self) -> String {
        validation_name(self.name)
    }
}

/// The name in metrics.jsonl of a number that was measured on the validation rows:
/// `validation_rewards/accuracies`.
pub fn validation_name(name: &str) -> String {
    format!("validation_{name}")
}

const fn chart(title: &'static str, digits: usize) -> Option<Chart> {
    Some(Chart { title, digits })
}

/// The objective's mean.
pub const LOSS: Metric = Metric {
    name: "loss",
    help: "mean over the trained tokens (or what the objective counts), in nats",
    better: Better::Lower,
    format: Format::Digits(4),
    line: Some("loss"),
    chart: chart("Loss", 2),
    // Told with its fall, in a line that no other metric has.
    result: None,
};

/// What the model predicts right.
pub const TOKEN_ACCURACY: Metric = Metric {
    name: "mean_token_accuracy",
    help: "share of the trained tokens of the validation rows that the model finds likeliest",
    better: Better::Higher,
    format: Format::Percent,
    line: None,
    chart: chart("Token accuracy", 2),
    result: Some("accuracy"),
};

/// How often the preferred answer wins.
pub const REWARD_ACCURACY: Metric = Metric {
    name: "rewards/accuracies",
    help: "share of the validation pairs in which the preferred answer has the higher reward; 50% is chance",
    better: Better::Higher,
    format: Format::Percent,
    line: None,
    chart: chart("Preference accuracy", 2),
    result: Some("accuracy"),
};

/// By how much the preferred answer wins.
pub const REWARD_MARGIN: Metric = Metric {
    name: "rewards/margins",
    help: "the preferred answers' reward less the others', in the mean",
    better: Better::Higher,
    format: Format::Digits(3),
    line: None,
    chart: chart("Margin", 3),
    result: Some("margin"),
};

/// The reward of the preferred answers.
pub const REWARD_CHOSEN: Metric = Metric {
    name: "rewards/chosen",
    help: "the preferred answers' reward, in the mean",
    better: Better::Neither,
    format: Format::Digits(3),
    line: None,
    chart: None,
    result: None,
};

/// The reward of the other answers.
pub const REWARD_REJECTED: Metric = Metric {
    name: "rewards/rejected",
    help: "the other answers' reward, in the mean",
    better: Better::Neither,
    format: Format::Digits(3),
    line: None,
    chart: None,
    result: None,
};

/// The gradient's norm.
pub const GRADIENT_NORM: Metric = Metric {
    name: "grad_norm",
    help: "the gradient's norm before clipping",
    better: Better::Neither,
    format: Format::Digits(3),
    line: Some("norm"),
    chart: chart("Gradient norm before clipping", 2),
    result: None,
};

/// The speed.
pub const SPEED: Metric = Metric {
    name: "tokens_per_second",
    help: "tokens of the step's rows per second",
    better: Better::Higher,
    format: Format::Digits(0),
    line: Some("tok/s"),
    chart: chart("Tokens per second", 0),
    result: None,
};

/// The learning rate.
pub const LEARNING_RATE: Metric = Metric {
    name: "learning_rate",
    help: "the learning rate of the step",
    better: Better::Neither,
    format: Format::Exponent(2),
    line: Some("lr"),
    chart: chart("Learning rate", 6),
    result: None,
};

/// Every declared metric, in the order in which they are shown.
pub const METRICS: &[&Metric] = &[
    &LOSS,
    &TOKEN_ACCURACY,
    &REWARD_ACCURACY,
    &REWARD_MARGIN,
    &REWARD_CHOSEN,
    &REWARD_REJECTED,
    &GRADIENT_NORM,
    &SPEED,
    &LEARNING_RATE,
];

/// One number before and after training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    /// Of the model that the run started from.
    pub before: f64,
    /// Of the weights that were handed out.
    pub after: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_documented_under_a_name_of_its_own() {
        for (at, metric) in METRICS.iter().enumerate() {
            assert!(!metric.help.is_empty() && !metric.name.starts_with("validation_"), "{}", metric.name);
            assert!(METRICS[at + 1..].iter().all(|other| other.name != metric.name), "{}", metric.name);
        }
    }

    #[test]
    fn numbers_are_written_in_their_format() {
        assert_eq!(Format::Percent.write(0.781), "78%");
        assert_eq!(Format::Digits(3).write(0.4121), "0.412");
        assert_eq!(Format::Exponent(2).write(2e-4), "2.00e-4");
    }
}
