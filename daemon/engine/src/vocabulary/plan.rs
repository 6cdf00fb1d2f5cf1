//! A plan, as it is printed, stored and drawn.

use serde::{Deserialize, Serialize};

/// Bytes of one kind of thing at the step's peak.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanPart {
    /// `weights`, `adapter`, `gradients`, `moments`, `activations`, `LM head`, ….
    pub name: String,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub device: String,
    pub parts: Vec<PlanPart>,
    pub peak_bytes: u64,
    /// What the device has to give; 0 where it does not say.
    pub available_bytes: u64,
    /// Host memory that `train.offload_activations` takes beside the peak, which is
    /// the device's.
    #[serde(default)]
    pub offloaded_bytes: u64,
    pub fits: bool,
    /// Sequences per forward pass that the run will use.
    pub micro_batch_size: usize,
    /// The most sequences of the longest rows that fit.
    pub largest_micro_batch: usize,
    pub steps: usize,
    pub tokens_per_step: f64,
    pub trainable_parameters: u64,
    pub parameters: u64,
    /// Estimated from a short measurement of the device's matrix products.
    pub seconds_per_step: f64,
    pub total_seconds: f64,
    /// What would make it fit, where it does not.
    pub remedy: Option<String>,
}

pub(crate) fn part(name: &str, bytes: u64) -> PlanPart {
    PlanPart { name: name.into(), bytes }
}
