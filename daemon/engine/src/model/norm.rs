//! RMSNorm and LayerNorm as layers.

use finetuned_shaders::{Device, Tensor, TensorError};

use super::parameters::{Gradients, ParameterId, Parameters};

type Result<T> = std::result::Result<T, TensorError>;

#[derive(Debug, Clone)]
pub struct Norm {
    pub weight: ParameterId,
    /// LayerNorm where there is a bias, else RMSNorm.
    pub bias: Option<ParameterId>,
    pub epsilon: f32,
    /// Added to the weight: 1 for Gemma.
    pub offset: f32,
}

impl Norm {
    /// The result, and the statistics that the backward pass needs.
    pub fn forward(&self, ops: &Device, p: &Parameters, x: &Tensor) -> Result<(Tensor, Tensor)> {
        match self.bias {
            None => ops.rms_norm(x, p.tensor(self.weight)?, self.epsilon, self.offset),
            Some(bias) => ops.layer_norm(x, p.tensor(self.weight)?, p.tensor(bias)?, self.epsilon),
        }
    }

    /// dx added to `into`.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        ops: &Device,
        p: &Parameters,
        g: &mut Gradients,
        dy: &Tensor,
        x: &Tensor,
        statistics: &Tensor,
        into: Option<Tensor>,
    ) -> Result<Tensor> {
        let weight = p.tensor(self.weight)?;
        match self.bias {
            None => ops.rms_norm_backward(dy, x, weight, statistics, self.offset, into, g.get_mut(self.weight)),
            Some(bias) => ops.layer_norm_backward(dy, x, weight, statistics, into, g.pair_mut(self.weight, bias)),
        }
    }
}
