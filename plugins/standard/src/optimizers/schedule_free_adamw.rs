//! Schedule-free AdamW: no learning-rate schedule, no end to plan for.
//!
//! Three points: z, which takes the steps; x, their running average, which is
//! evaluated and saved; and y = (1 − β₁) z + β₁ x, where gradients are taken
//! and which is the parameter in training. With v ← β₂ v + (1 − β₂) g²,
//! u = g / (√v̂ + ε) + λ y and c = w / Σ w, w = (largest lr so far)²:
//!
//! z ← z − lr u, x ← (1 − c) x + c z
//!
//! (The Road Less Scheduled, <https://arxiv.org/abs/2405.15682>). x is never
//! stored: y ← y + c (z − y) + lr (β₁ (1 − c) − 1) u, and at evaluation
//! x = y + (1 − 1/β₁) (z − y). Warm-up is the run's own.
//!
//! # Worked example
//! In the first step c = 1, so x = z and all three points move by lr against
//! the gradient's sign.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::optimizer::{Optimizer, TensorShape};
use finetuned_plugin_api::parameters::{Parameter, Values};
use finetuned_plugin_api::program::{Program, Rule, StateType};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};

pub const PLUGIN: BuiltIn = BuiltIn { descriptor, make: Make::Optimizer(make) };

/// See the module's words.
pub struct ScheduleFreeAdamW {
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
}

fn descriptor() -> Descriptor {
    crate::described(
        "schedule-free-adamw",
        Kind::Optimizer,
        "AdamW that averages its own steps in place of a decaying learning rate; use a constant schedule.",
        "The Road Less Scheduled, https://arxiv.org/abs/2405.15682",
        vec![
            Parameter::number("beta1", 0.9, "how near the average gradients are taken").range(0.01, 0.999_999),
            super::beta2(0.999),
            super::epsilon(1e-8),
            super::weight_decay(0.0),
        ],
    )
}

fn make(values: &Values) -> Result<Box<dyn Optimizer>, PluginError> {
    Ok(Box::new(ScheduleFreeAdamW {
        beta1: values.number("beta1")?,
        beta2: values.number("beta2")?,
        epsilon: values.number("epsilon")?,
        weight_decay: values.number("weight_decay")?,
    }))
}

impl Optimizer for ScheduleFreeAdamW {
    fn rule(&self, tensor: &TensorShape) -> Result<Program, PluginError> {
        let rule = Rule::new(tensor);
        let (y, g, lr, t) = (rule.parameter(), rule.gradient(), rule.learning_rate(), rule.step());
        let (z, v) = (rule.copy_of_parameter("z"), rule.state("v", StateType::F32));
        let (largest, total) = (rule.scalar_state("largest_learning_rate"), rule.scalar_state("weight_sum"));
        let new_v = v * self.beta2 + g * g * (1.0 - self.beta2);
        let correction = 1.0 - rule.constant(self.beta2).pow(t);
        let mut u = g / ((new_v / correction).sqrt() + self.epsilon);
        if self.weight_decay != 0.0 {
            u = u + y * self.weight_decay;
        }
        let new_largest = largest.max(lr);
        let weight = new_largest.square();
        let new_total = total + weight;
        // A first step at a learning rate of 0 has no weight at all.
        let c = weight / new_total.max(1e-30);
        rule.set(v, new_v);
        rule.set(largest, new_largest);
        rule.set(total, new_total);
        rule.set(z, z - lr * u);
        rule.finish(y + c * (z - y) + lr * ((1.0 - c) * self.beta1 - 1.0) * u)
    }

    fn evaluation(&self, tensor: &TensorShape) -> Result<Option<Program>, PluginError> {
        let rule = Rule::new(tensor);
        let (y, z) = (rule.parameter(), rule.copy_of_parameter("z"));
        rule.finish(y + (z - y) * (1.0 - 1.0 / self.beta1)).map(Some)
    }
}
