//! The value head of a reward model: one number for a hidden state.
//!
//! value = h · scoreᵀ, with h the final norm's output at a document's last
//! token and `score [1, C]` without a bias: the layer that transformers' classes
//! for sequence classification put in the language-model head's place, and that
//! TRL's RewardTrainer trains.
//!
//! # Source
//! transformers 5, `modeling_layers.GenericForSequenceClassification` (the layer,
//! read at the last token that is no padding) and
//! `PreTrainedModel._init_weights` (normal, deviation `initializer_range`); TRL,
//! `RewardTrainer`. A transformers model whose padding token is also the token
//! that ends a turn reads one token earlier than this: give it another padding
//! token.

use finetuned_formats::{ModelConfig, TensorSource};
use finetuned_shaders::{Device, Tensor, TensorError};

use super::parameters::{Gradients, ParameterId, Parameters};
use super::streams;
use crate::error::EngineError;

/// The head's weight in a model folder.
pub const WEIGHT: &str = "score.weight";

/// transformers' `initializer_range`, if a configuration does not say.
const DEVIATION: f64 = 0.02;

#[derive(Debug, Clone, Copy)]
pub struct ValueHead {
    /// `[1, C]`.
    pub weight: ParameterId,
}

impl ValueHead {
    /// One value `[D, 1]` per row of h `[D, C]`.
    pub fn forward(&self, device: &Device, p: &Parameters, h: &Tensor) -> Result<Tensor, TensorError> {
        device.linear(h, p.weight(self.weight))
    }

    /// dh `[D, C]` from dvalue `[D, 1]`, and the head's own gradient if it is
    /// wanted.
    pub fn backward(
        &self,
        device: &Device,
        p: &Parameters,
        g: &mut Gradients,
        dvalue: &Tensor,
        h: &Tensor,
    ) -> Result<Tensor, TensorError> {
        if let Some(dweight) = g.get_mut(self.weight) {
            device.linear_weight_backward(dvalue, h, dweight)?;
        }
        device.linear_backward(dvalue, p.weight(self.weight), None)
    }
}

/// The values that a new head begins with, as transformers draws them.
pub fn initial(config: &ModelConfig, seed: u64) -> Vec<f32> {
    let deviation = config.raw["initializer_range"].as_f64().unwrap_or(DEVIATION);
    streams::value_head(seed).normal_vec(config.hidden_size, deviation as f32)
}

/// The head that a model folder holds, None if it holds none.
///
/// # Errors
/// A head of several outputs, or of another width; values that are not finite.
pub fn stored(config: &ModelConfig, source: &dyn TensorSource) -> Result<Option<Vec<f32>>, EngineError> {
    let Some(info) = source.info(WEIGHT) else { return Ok(None) };
    let wrong = |reason: String| EngineError::Checkpoint { tensor: WEIGHT.into(), reason };
    if info.shape != [1, config.hidden_size] {
        return Err(wrong(format!("has shape {:?}, a value head has [1, {}]", info.shape, config.hidden_size)));
    }
    let values = source.read_f32(WEIGHT)?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err(wrong("holds numbers that are not finite".into()));
    }
    Ok(Some(values))
}
