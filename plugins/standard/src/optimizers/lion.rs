//! Lion: the sign of an interpolated momentum.
//!
//! p ← (1 − lr λ) p − lr sign(β₁ m + (1 − β₁) g), then
//! m ← β₂ m + (1 − β₂) g (Symbolic Discovery of Optimization Algorithms,
//! <https://arxiv.org/abs/2302.06675>). Use a learning rate 3 to 10 times
//! smaller than AdamW's.
//!
//! # Worked example
//! In the first step m = 0: every element moves by lr against its gradient's
//! sign.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::optimizer::{Optimizer, TensorShape};
use finetuned_plugin_api::parameters::Values;
use finetuned_plugin_api::program::{Program, Rule, StateType};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};

pub const PLUGIN: BuiltIn = BuiltIn { descriptor, make: Make::Optimizer(make) };

/// See the module's words.
pub struct Lion {
    pub beta1: f64,
    pub beta2: f64,
    pub weight_decay: f64,
}

fn descriptor() -> Descriptor {
    crate::described(
        "lion",
        Kind::Optimizer,
        "The sign of an interpolated momentum; one f32 state. Wants a smaller learning rate than AdamW.",
        "Symbolic Discovery of Optimization Algorithms, https://arxiv.org/abs/2302.06675",
        vec![super::beta1(0.9), super::beta2(0.99), super::weight_decay(0.0)],
    )
}

fn make(values: &Values) -> Result<Box<dyn Optimizer>, PluginError> {
    Ok(Box::new(Lion {
        beta1: values.number("beta1")?,
        beta2: values.number("beta2")?,
        weight_decay: values.number("weight_decay")?,
    }))
}

impl Optimizer for Lion {
    fn rule(&self, tensor: &TensorShape) -> Result<Program, PluginError> {
        let rule = Rule::new(tensor);
        let (p, g, lr) = (rule.parameter(), rule.gradient(), rule.learning_rate());
        let m = rule.state("m", StateType::F32);
        let direction = (m * self.beta1 + g * (1.0 - self.beta1)).sign();
        rule.set(m, m * self.beta2 + g * (1.0 - self.beta2));
        rule.finish(p * (1.0 - lr * self.weight_decay) - lr * direction)
    }
}
