//! The feed-forward branch of a layer.

use finetuned_shaders::{Activation, Tensor, TensorError};

use super::context::{Backward, Forward};
use super::linear::{Linear, LinearSaved};
use super::products::{Products, ProductsSaved};

type Result<T> = std::result::Result<T, TensorError>;

/// The feed-forward branch.
#[derive(Debug, Clone)]
pub struct Mlp {
    /// From the stream to the inner width.
    pub input: Products,
    /// How the products of the input become the inner values.
    pub kind: MlpKind,
    /// The nonlinearity.
    pub activation: Activation,
    /// From the inner width to the stream.
    pub output: Linear,
}

/// How the products of the input become the inner values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlpKind {
    /// act(gate) ⊙ up.
    Gated,
    /// act(h), h the only product.
    Plain,
}

/// What the backward pass reads.
#[derive(Debug)]
pub struct MlpSaved {
    x: Tensor,
    input: ProductsSaved,
    hidden: Hidden,
    /// After the nonlinearity.
    inner: Tensor,
    output: LinearSaved,
}

/// The products before the nonlinearity.
#[derive(Debug)]
enum Hidden {
    Gated { gate: Tensor, up: Tensor },
    Plain(Tensor),
}

impl Mlp {
    /// The branch's result for its input `[N, C]`, and what the backward pass
    /// reads.
    pub fn forward(&self, cx: &Forward, x: Tensor) -> Result<(Tensor, MlpSaved)> {
        let (hidden, inner, input) = match self.kind {
            MlpKind::Gated => {
                let ([gate, up], input) = self.input.forward(cx, &x)?;
                let inner = cx.device.gated(&gate, &up, self.activation)?;
                (Hidden::Gated { gate, up }, inner, input)
            }
            MlpKind::Plain => {
                let ([hidden], input) = self.input.forward(cx, &x)?;
                let inner = cx.device.activation(&hidden, self.activation)?;
                (Hidden::Plain(hidden), inner, input)
            }
        };
        let (y, output) = self.output.forward(cx, &inner)?;
        Ok((y, MlpSaved { x, input, hidden, inner, output }))
    }

    /// The gradient of the branch's input.
    pub fn backward(&self, cx: &mut Backward, dy: &Tensor, saved: &MlpSaved) -> Result<Tensor> {
        let dinner = self.output.backward(cx, dy, &saved.inner, &saved.output, None)?;
        let dhidden = match &saved.hidden {
            Hidden::Gated { gate, up } => {
                let (dgate, dup) = cx.forward.device.gated_backward(&dinner, gate, up, self.activation)?;
                vec![dgate, dup]
            }
            Hidden::Plain(hidden) => vec![cx.forward.device.activation_backward(&dinner, hidden, self.activation)?],
        };
        drop(dinner);
        self.input.backward(cx, &dhidden, &saved.x, &saved.input)
    }
}
