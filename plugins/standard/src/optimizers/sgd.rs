//! Stochastic gradient descent with momentum.
//!
//! g ← g + λ p, b ← μ b + g, p ← p − lr (g + μ b with Nesterov, else b): the
//! arithmetic of `torch.optim.SGD` without dampening. Without momentum it
//! keeps no state.
//!
//! # Worked example
//! μ = 0.9, constant g = 1: b is 1, 1.9, 2.71, …, towards 10; with Nesterov the
//! first step moves by lr · 1.9.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::optimizer::{Optimizer, TensorShape};
use finetuned_plugin_api::parameters::{Parameter, Values};
use finetuned_plugin_api::program::{Program, Rule, StateType};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};

pub const PLUGIN: BuiltIn = BuiltIn { descriptor, make: Make::Optimizer(make) };

/// See the module's words.
pub struct Sgd {
    pub momentum: f64,
    pub nesterov: bool,
    pub weight_decay: f64,
}

fn descriptor() -> Descriptor {
    crate::described(
        "sgd",
        Kind::Optimizer,
        "Stochastic gradient descent with momentum; one f32 state, none without momentum.",
        "On the importance of initialization and momentum in deep learning, https://proceedings.mlr.press/v28/sutskever13.html",
        vec![
            Parameter::number("momentum", 0.9, "part of the last step's direction that is kept").range(0.0, 0.999_999),
            Parameter::boolean("nesterov", false, "look ahead along the momentum"),
            super::weight_decay(0.0),
        ],
    )
}

fn make(values: &Values) -> Result<Box<dyn Optimizer>, PluginError> {
    Ok(Box::new(Sgd {
        momentum: values.number("momentum")?,
        nesterov: values.boolean("nesterov")?,
        weight_decay: values.number("weight_decay")?,
    }))
}

impl Optimizer for Sgd {
    fn rule(&self, tensor: &TensorShape) -> Result<Program, PluginError> {
        let rule = Rule::new(tensor);
        let (p, lr) = (rule.parameter(), rule.learning_rate());
        let mut g = rule.gradient();
        if self.weight_decay != 0.0 {
            g = g + p * self.weight_decay;
        }
        if self.momentum == 0.0 {
            return rule.finish(p - lr * g);
        }
        let b = rule.state("momentum", StateType::F32);
        let new_b = b * self.momentum + g;
        rule.set(b, new_b);
        let direction = if self.nesterov { g + new_b * self.momentum } else { new_b };
        rule.finish(p - lr * direction)
    }
}
