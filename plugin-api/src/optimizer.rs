//! An optimizer is an update rule as data.
//!
//! For each tensor that is trained the plugin returns a
//! [`Program`](crate::program::Program) over the parameter, its gradient and
//! named state tensors. The engine runs it on any device, owns the state,
//! plans its memory, saves it and resumes it; the plugin is not called in the
//! step at all.
//!
//! The escape hatch is [`HostOptimizer`]: a callback on f32 slices. Its price:
//! parameter, gradient and state are copied to the host and back in every
//! step, which is small for an adapter (40 million parameters: about 20 ms on
//! PCIe 4) and ruinous for full training.

use crate::PluginError;
use crate::program::{Program, Scalars, State};

/// What a tensor is in its model, for rules that treat kinds apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[repr(u32)]
pub enum TensorKind {
    /// A linear layer's weight inside the decoder.
    Matrix = 0,
    /// Token or position embeddings.
    Embedding = 1,
    /// The language-model head.
    Head = 2,
    /// A norm's gain or bias.
    Norm = 3,
    /// A linear layer's bias.
    Bias = 4,
    /// The down projection of a LoRA adapter, `[rank, in]`.
    LoraA = 5,
    /// The up projection of a LoRA adapter, `[out, rank]`.
    LoraB = 6,
    /// DoRA's magnitudes, `[out]`.
    Magnitude = 7,
    /// A value head of one output.
    ValueHead = 8,
}

/// A tensor that is trained.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TensorShape {
    /// As in the checkpoint: row-major, `[out, in]` for a weight.
    pub shape: Vec<usize>,
    /// As in the checkpoint or adapter.
    pub name: String,
    pub kind: TensorKind,
}

impl TensorShape {
    /// The (rows, columns) of its [`Program`]: a matrix as it is, a vector as one row, more
    /// dimensions as the first by the product of the rest.
    pub fn matrix(&self) -> (usize, usize) {
        match self.shape.as_slice() {
            [] => (1, 1),
            [n] => (1, *n),
            [rows, rest @ ..] => (*rows, rest.iter().product()),
        }
    }

    /// Whether it has two dimensions or more.
    pub fn is_matrix(&self) -> bool {
        self.shape.len() >= 2
    }

    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// An update rule.
pub trait Optimizer: Send {
    /// The program for one tensor; asked once for each, before the first step.
    fn rule(&self, tensor: &TensorShape) -> Result<Program, PluginError>;

    /// For optimizers that train at another point than they evaluate at
    /// (schedule-free): a program whose parameter output is the point to
    /// evaluate and save. It reads the states of [`Optimizer::rule`] by name,
    /// writes none, and sees a zero gradient. `None`: the parameter itself.
    fn evaluation(&self, tensor: &TensorShape) -> Result<Option<Program>, PluginError> {
        let _ = tensor;
        Ok(None)
    }

    /// The escape hatch; when it is given, `rule` is not used.
    fn host(&self) -> Option<&dyn HostOptimizer> {
        None
    }
}

/// A step as a callback on host memory: slow on a GPU, see the module's words.
pub trait HostOptimizer: Send {
    /// The states it keeps for a tensor, all f32.
    fn states(&self, tensor: &TensorShape) -> Result<Vec<State>, PluginError>;

    /// Changes `parameter` and `states` (in the order of
    /// [`HostOptimizer::states`]) in place.
    fn step(
        &self,
        tensor: &TensorShape,
        parameter: &mut [f32],
        gradient: &[f32],
        states: &mut [Vec<f32>],
        scalars: &Scalars,
    ) -> Result<(), PluginError>;
}
