//! AdamW with moments in 8 bits.
//!
//! The rule of [`adamw`](super::adamw); the moments are kept as 8-bit codes
//! with one f32 scale for each 256 elements, 2.03 bytes a parameter in place
//! of 8 (8-bit Optimizers via Block-wise Quantization,
//! <https://arxiv.org/abs/2110.02861>). Tensors below `smallest` elements keep
//! f32 moments, as bitsandbytes does.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::optimizer::{Optimizer, TensorShape};
use finetuned_plugin_api::parameters::{Parameter, Values};
use finetuned_plugin_api::program::{Program, StateType};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};

use super::adamw::AdamW;

pub const PLUGIN: BuiltIn = BuiltIn { descriptor, make: Make::Optimizer(make) };

/// See the module's words.
pub struct AdamW8bit {
    pub adamw: AdamW,
    pub smallest: usize,
}

fn descriptor() -> Descriptor {
    crate::described(
        "adamw-8bit",
        Kind::Optimizer,
        "AdamW with moments in 8 bits: a quarter of the memory.",
        "8-bit Optimizers via Block-wise Quantization, https://arxiv.org/abs/2110.02861",
        vec![
            super::beta1(0.9),
            super::beta2(0.999),
            super::epsilon(1e-8),
            super::weight_decay(0.01),
            Parameter::integer("smallest", 4096, "tensors of fewer elements keep f32 moments").range(0.0, 1e12),
        ],
    )
}

fn make(values: &Values) -> Result<Box<dyn Optimizer>, PluginError> {
    let smallest = usize::try_from(values.integer("smallest")?).unwrap_or(0);
    Ok(Box::new(AdamW8bit { adamw: AdamW::from_values(values)?, smallest }))
}

impl Optimizer for AdamW8bit {
    fn rule(&self, tensor: &TensorShape) -> Result<Program, PluginError> {
        if tensor.elements() < self.smallest {
            return self.adamw.rule(tensor);
        }
        let (first, second) = (StateType::BlockwiseU8 { signed: true }, StateType::BlockwiseU8 { signed: false });
        self.adamw.program(tensor, first, second, 1.0)
    }
}
