//! A plan, as it is printed, stored and drawn.

use serde::{Deserialize, Serialize};

/// Bytes of one kind of thing at the peak of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanPart {
    /// `weights`, `adapter`, `gradients`, `optimizer state`, `activations`, `LM head`, ….
    pub name: String,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The device's name: `cpu`, or a GPU with its model.
    pub device: String,
    /// Whether the device's memory is the host's: it is the CPU.
    #[serde(default)]
    pub on_host: bool,
    /// What the peak is made of.
    pub parts: Vec<PlanPart>,
    pub peak_bytes: u64,
    /// Memory of the device that a run may use; 0 if unknown.
    pub available_bytes: u64,
    /// Host memory that `train.offload_activations` takes, in addition to the peak on
    /// the device.
    #[serde(default)]
    pub offloaded_bytes: u64,
    /// Whether the peak is within `available_bytes`.
    pub fits: bool,
    /// Sequences per forward pass that the run will use.
    pub micro_batch_size: usize,
    /// The largest micro-batch that fits.
    pub largest_micro_batch: usize,
    pub steps: usize,
    pub tokens_per_step: f64,
    pub trainable_parameters: u64,
    pub parameters: u64,
    /// Estimated from a short measurement of the device's matrix products.
    pub seconds_per_step: f64,
    pub total_seconds: f64,
    /// What to change if it does not fit.
    pub remedy: Option<String>,
}

impl Plan {
    /// Bytes that the run needs in host memory.
    pub fn host_bytes(&self) -> u64 {
        if self.on_host { self.peak_bytes } else { self.offloaded_bytes }
    }
}

pub(crate) fn part(name: &str, bytes: u64) -> PlanPart {
    PlanPart { name: name.into(), bytes }
}
