//! What a run says while it works. A worker writes one JSON object per line; the
//! foreground command draws them.

use finetuned_data::DatasetReport;
use serde::{Deserialize, Serialize};

use super::plan::Plan;

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
    /// Further numbers of the objective (rewards, margins, …).
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

/// How a finished run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub steps: usize,
    pub tokens: u64,
    pub trained_tokens: u64,
    /// Wall time of training, summed over all parts of an interrupted run.
    pub seconds: f64,
    pub first_loss: Option<f64>,
    pub last_loss: Option<f64>,
    pub validation_before: Option<f64>,
    pub validation_after: Option<f64>,
    /// The step whose weights were handed out.
    pub kept_step: usize,
    pub stopped_early: bool,
    pub peak_bytes: u64,
    /// The folder with the adapter or the model.
    pub output: String,
    /// Largest difference of logits between the trained weights and the files
    /// read back.
    pub reload_difference: f64,
    /// `held_out_before` and `held_out_after`: further numbers of the objective over the
    /// validation rows, by name (`rewards/accuracies`, `rewards/margins`).
    #[serde(default)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}
