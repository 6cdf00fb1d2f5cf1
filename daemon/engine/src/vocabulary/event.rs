//! What a run says while it works. A worker writes one JSON object per line; the
//! foreground command draws them.

use finetuned_data::DatasetReport;
use serde::{Deserialize, Serialize};

use super::plan::Plan;
use crate::metrics::{Change, Metric};

/// One optimizer step, as written to metrics.jsonl.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// From 1; step 0 holds only the validation before any update.
    pub step: usize,
    /// Mean over the step's trained tokens, or what the objective calls its loss; nats.
    pub loss: f64,
    /// L2 norm of all gradients together, before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Tokens of the step's rows.
    pub tokens: usize,
    pub trained_tokens: usize,
    /// Wall time of the step.
    pub seconds: f64,
    pub tokens_per_second: f64,
    /// Mean over the trained tokens of the validation rows, if it was measured after
    /// this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Further numbers by name: the objective's (rewards, margins, …), and those of a
    /// validation after this step.
    #[serde(default, flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A phase before the steps: "reading model", "reading dataset", ….
    Phase {
        name: String,
    },
    /// The dataset was read: what the receipt shows.
    Prepared {
        report: Box<DatasetReport>,
    },
    /// Bytes and time, told before anything is trained.
    Planned {
        plan: Box<Plan>,
    },
    /// Training begins, or goes on after `resumed_from` steps.
    Started {
        total_steps: usize,
        resumed_from: usize,
    },
    /// A part of a step is done: `done` of `micro_batches`.
    Progress {
        step: usize,
        done: usize,
        micro_batches: usize,
    },
    Step(StepMetrics),
    Validation {
        step: usize,
        loss: f64,
        tokens: usize,
    },
    Checkpoint {
        step: usize,
    },
    /// Worth knowing, but nothing is wrong: a fallback was taken, rows were dropped, the
    /// run stopped early.
    Note {
        message: String,
    },
    Finished(Box<Summary>),
}

/// What the steps of a run add up to. A checkpoint holds it, and the summary.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Tokens of the rows.
    pub tokens: u64,
    pub trained_tokens: u64,
    /// Wall time of the steps, over all the parts of an interrupted run.
    pub seconds: f64,
    /// Training loss of the first step.
    pub first_loss: Option<f64>,
    /// Training loss of the last step so far.
    pub last_loss: Option<f64>,
    /// Validation loss before any update.
    pub validation_before: Option<f64>,
    /// Whether the validation loss ended the run before its last step.
    pub stopped_early: bool,
}

/// How a finished run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub steps: usize,
    #[serde(flatten)]
    pub tally: Tally,
    pub validation_after: Option<f64>,
    /// The step whose weights were handed out.
    pub kept_step: usize,
    pub peak_bytes: u64,
    /// The folder with the adapter or the model.
    pub output: String,
    /// Largest difference of logits between the trained weights and the files
    /// read back.
    pub reload_difference: f64,
    /// [`VALIDATION_BEFORE`] and [`VALIDATION_AFTER`]: what the validations measured
    /// beside the loss, by name (`rewards/accuracies`, `rewards/margins`).
    #[serde(default)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// Where [`Summary::extra`] keeps the numbers of the validation before training.
pub const VALIDATION_BEFORE: &str = "held_out_before";

/// Where [`Summary::extra`] keeps the numbers of the validation whose weights were
/// handed out.
pub const VALIDATION_AFTER: &str = "held_out_after";

impl Summary {
    /// What the validations measured of this metric, before and after training;
    /// `None` if they did not measure it.
    pub fn change(&self, metric: &Metric) -> Option<Change> {
        let number = |when: &str| self.extra.get(when)?.get(metric.name)?.as_f64();
        Some(Change { before: number(VALIDATION_BEFORE)?, after: number(VALIDATION_AFTER)? })
    }
}

impl StepMetrics {
    /// Every number of the step by its name in metrics.jsonl.
    pub fn numbers(&self) -> serde_json::Map<String, serde_json::Value> {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(numbers)) => numbers,
            // Every field of a step is a number, which JSON can write.
            _ => serde_json::Map::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As versions wrote it before the tally was a struct: the fields stay at the top.
    const OLD: &str = r#"{"steps":3,"tokens":90,"trained_tokens":40,"seconds":1.5,"first_loss":2.5,"last_loss":1.25,
        "validation_before":2.0,"validation_after":1.5,"kept_step":2,"stopped_early":true,"peak_bytes":7,
        "output":"/o","reload_difference":0.0,"extra":{"held_out_before":{"kl":0.5},"held_out_after":{"kl":0.25}}}"#;

    #[test]
    fn the_summaries_of_older_versions_are_read_and_written_alike() {
        let summary: Summary = serde_json::from_str(OLD).unwrap();
        assert_eq!(
            (summary.tally.tokens, summary.tally.last_loss, summary.tally.stopped_early),
            (90, Some(1.25), true)
        );
        let old: serde_json::Value = serde_json::from_str(OLD).unwrap();
        assert_eq!(serde_json::to_value(&summary).unwrap(), old);
        let event: Event =
            serde_json::from_value(serde_json::to_value(Event::Finished(Box::new(summary.clone()))).unwrap()).unwrap();
        assert_eq!(event, Event::Finished(Box::new(summary)));
    }
}
