//! How far a job is.

use finetuned_engine::Event;
use serde::{Deserialize, Serialize};

/// How far a job is; rewritten while it runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// What it does before its first step; `training` then.
    pub phase: Option<String>,
    /// The last step that was done.
    pub step: usize,
    /// 0 before training begins.
    pub total_steps: usize,
    /// The step that the present attempt went on from.
    pub resumed_from: usize,
    /// Of the last step.
    pub loss: Option<f64>,
    /// Of the last step.
    pub learning_rate: Option<f64>,
    /// The last one that was measured.
    pub validation_loss: Option<f64>,
    /// The first one, before any update.
    pub validation_before: Option<f64>,
    /// Of the last step.
    pub tokens_per_second: Option<f64>,
    /// Mean over the last steps.
    pub seconds_per_step: Option<f64>,
    /// The step of the last checkpoint.
    pub checkpoint_step: Option<usize>,
}

impl Progress {
    /// Folds one event in.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Phase { name } => self.phase = Some(name.clone()),
            Event::Started { total_steps, resumed_from } => {
                self.phase = Some("training".into());
                self.total_steps = *total_steps;
                self.resumed_from = *resumed_from;
                self.step = *resumed_from;
            }
            Event::Step(metrics) => {
                self.step = metrics.step;
                self.loss = Some(metrics.loss);
                self.learning_rate = Some(metrics.learning_rate);
                self.tokens_per_second = Some(metrics.tokens_per_second);
                let before = self.seconds_per_step.unwrap_or(metrics.seconds);
                self.seconds_per_step = Some(0.8 * before + 0.2 * metrics.seconds);
                if let Some(loss) = metrics.validation_loss {
                    self.validation_loss = Some(loss);
                }
            }
            Event::Validation { step, loss, .. } => {
                self.validation_loss = Some(*loss);
                if *step == 0 {
                    self.validation_before = Some(*loss);
                }
            }
            Event::Checkpoint { step } => self.checkpoint_step = Some(*step),
            Event::Finished(_) => self.phase = None,
            Event::Prepared { .. } | Event::Planned { .. } | Event::Progress { .. } | Event::Note { .. } => {}
        }
    }

    /// Time until the last step at the present speed.
    pub fn seconds_left(&self) -> Option<f64> {
        let left = self.total_steps.checked_sub(self.step).filter(|_| self.total_steps > 0)?;
        Some(self.seconds_per_step? * left as f64)
    }
}
