//! AdamW: Adam with decoupled weight decay.
//!
//! m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g²,
//! p ← (1 − lr λ) p − lr m̂ / (√v̂ + ε), with m̂ = m / (1 − β₁ᵗ) and v̂ alike
//! (Decoupled Weight Decay Regularization, <https://arxiv.org/abs/1711.05101>).
//! The arithmetic is `torch.optim.AdamW`'s.
//!
//! # Worked example
//! In the first step m̂ = g and v̂ = g²: every element moves by lr against its
//! gradient's sign.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::optimizer::{Optimizer, TensorShape};
use finetuned_plugin_api::parameters::Values;
use finetuned_plugin_api::program::{Program, Rule, StateType};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};

pub const PLUGIN: BuiltIn = BuiltIn { descriptor, make: Make::Optimizer(make) };

/// See the module's words.
#[derive(Debug, Clone)]
pub struct AdamW {
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
}

fn descriptor() -> Descriptor {
    crate::described(
        "adamw",
        Kind::Optimizer,
        "Adam with decoupled weight decay; two f32 states.",
        "Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101",
        vec![super::beta1(0.9), super::beta2(0.999), super::epsilon(1e-8), super::weight_decay(0.01)],
    )
}

fn make(values: &Values) -> Result<Box<dyn Optimizer>, PluginError> {
    Ok(Box::new(AdamW::from_values(values)?))
}

impl AdamW {
    pub(super) fn from_values(values: &Values) -> Result<AdamW, PluginError> {
        Ok(AdamW {
            beta1: values.number("beta1")?,
            beta2: values.number("beta2")?,
            epsilon: values.number("epsilon")?,
            weight_decay: values.number("weight_decay")?,
        })
    }

    /// The rule with the moments kept as these types.
    pub(super) fn program(
        &self,
        tensor: &TensorShape,
        first: StateType,
        second: StateType,
        learning_rate_ratio: f64,
    ) -> Result<Program, PluginError> {
        let rule = Rule::new(tensor);
        let (p, g, t) = (rule.parameter(), rule.gradient(), rule.step());
        let lr = rule.learning_rate() * learning_rate_ratio;
        let (m, v) = (rule.state("m", first), rule.state("v", second));
        let new_m = m.lerp(g, 1.0 - self.beta1);
        let new_v = v * self.beta2 + g * g * (1.0 - self.beta2);
        rule.set(m, new_m);
        rule.set(v, new_v);
        let correction1 = 1.0 - rule.constant(self.beta1).pow(t);
        let correction2 = 1.0 - rule.constant(self.beta2).pow(t);
        let decayed = p * (1.0 - lr * self.weight_decay);
        let denominator = new_v.sqrt() * (1.0 / correction2.sqrt()) + self.epsilon;
        rule.finish(decayed - lr / correction1 * (new_m / denominator))
    }
}

impl Optimizer for AdamW {
    fn rule(&self, tensor: &TensorShape) -> Result<Program, PluginError> {
        self.program(tensor, StateType::F32, StateType::F32, 1.0)
    }
}
