//! RMSNorm and LayerNorm as layers.

use finetuned_shaders::{Tensor, TensorError};

use super::context::{Backward, Forward};
use super::parameters::ParameterId;

type Result<T> = std::result::Result<T, TensorError>;

/// A norm over groups as wide as its weight: the residual stream, all heads of
/// a query or key, or each head.
#[derive(Debug, Clone)]
pub struct Norm {
    /// The gains.
    pub weight: ParameterId,
    /// LayerNorm if there is a bias, else RMSNorm.
    pub bias: Option<ParameterId>,
    /// Added to the variance under the square root.
    pub epsilon: f32,
    /// Added to the weight: 1 for Gemma.
    pub offset: f32,
}

/// What a norm's backward pass reads.
#[derive(Debug)]
pub struct NormSaved {
    x: Tensor,
    statistics: Tensor,
}

impl Norm {
    /// The normed x, and what the backward pass reads.
    pub fn forward(&self, cx: &Forward, x: Tensor) -> Result<(Tensor, NormSaved)> {
        let weight = cx.parameters.tensor(self.weight)?;
        let (y, statistics) = match self.bias {
            None => cx.device.rms_norm(&x, weight, self.epsilon, self.offset)?,
            Some(bias) => cx.device.layer_norm(&x, weight, cx.parameters.tensor(bias)?, self.epsilon)?,
        };
        Ok((y, NormSaved { x, statistics }))
    }

    /// dx added to `into`.
    pub fn backward(&self, cx: &mut Backward, dy: &Tensor, saved: &NormSaved, into: Option<Tensor>) -> Result<Tensor> {
        let weight = cx.forward.parameters.tensor(self.weight)?;
        let (x, statistics) = (&saved.x, &saved.statistics);
        match self.bias {
            None => {
                let dweight = cx.gradients.get_mut(self.weight);
                cx.forward.device.rms_norm_backward(dy, x, weight, statistics, self.offset, into, dweight)
            }
            Some(bias) => {
                let dparameters = cx.gradients.pair_mut(self.weight, bias);
                cx.forward.device.layer_norm_backward(dy, x, weight, statistics, into, dparameters)
            }
        }
    }
}
