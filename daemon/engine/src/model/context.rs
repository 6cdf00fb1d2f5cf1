//! What every layer's pass reads. A layer takes its context and its tensors,
//! and nothing else.

use finetuned_shaders::{Device, RotaryTable};

use super::batch::TokenBatch;
use super::parameters::{Gradients, Parameters};

/// What one pass over a micro-batch computes.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    /// Dropout acts.
    pub training: bool,
    /// Adapters act. Without them the model is its base.
    pub adapters: bool,
    /// The run's seed, for dropout.
    pub seed: u64,
    /// The optimizer step, from 1.
    pub step: u32,
    /// The micro-batch within the step, from 0.
    pub micro_batch: u32,
}

impl Pass {
    /// Evaluation: no dropout.
    pub fn evaluation(adapters: bool) -> Pass {
        Pass { training: false, adapters, seed: 0, step: 0, micro_batch: 0 }
    }
}

/// The context of a forward pass.
#[derive(Clone, Copy)]
pub struct Forward<'a> {
    /// Where the tensors are.
    pub device: &'a Device,
    /// The model's parameters.
    pub parameters: &'a Parameters,
    /// The model's rotary tables.
    pub tables: &'a [RotaryTable],
    /// The tokens that the rows of the activations belong to.
    pub batch: &'a TokenBatch,
    /// What the pass computes.
    pub pass: Pass,
}

/// The context of a backward pass.
pub struct Backward<'a> {
    /// The forward pass that is differentiated, and that computes again what was not
    /// kept.
    pub forward: Forward<'a>,
    /// The parameters' gradients, which layers add to.
    pub gradients: &'a mut Gradients,
}

/// Whether a layer's backward pass computes the gradient of its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputGradient {
    /// Something below the layer is trained.
    Wanted,
    /// Nothing below the layer is trained.
    Unwanted,
}
