//! Adafactor: a second moment in as much memory as one row and one column.
//!
//! For a matrix, r and c are running means of g² over each row's and each
//! column's elements and v̂ = r c / mean(r); a vector keeps v itself. With
//! β̂₂ = 1 − t^decay, u = g / √v̂ and α = max(ε₂, rms(p)) · min(lr, 1/√t):
//!
//! p ← (1 − lr λ) p − α u / max(1, rms(u) / d)
//!
//! (Adafactor: Adaptive Learning Rates with Sublinear Memory Cost,
//! <https://arxiv.org/abs/1804.04235>). The arithmetic is
//! `torch.optim.Adafactor`'s.
//!
//! # Worked example
//! In the first step β̂₂ = 0. A matrix whose g is a constant has r = c = g²,
//! v̂ = g² and u = sign(g): every element moves by lr times the parameter's rms.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::optimizer::{Optimizer, TensorShape};
use finetuned_plugin_api::parameters::{Parameter, Values};
use finetuned_plugin_api::program::{Axis, Program, Rule, StateType, Value};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};

pub const PLUGIN: BuiltIn = BuiltIn { descriptor, make: Make::Optimizer(make) };

/// See the module's words.
pub struct Adafactor {
    pub beta2_decay: f64,
    pub epsilon1: f64,
    pub epsilon2: f64,
    pub clip: f64,
    pub weight_decay: f64,
}

fn descriptor() -> Descriptor {
    crate::described(
        "adafactor",
        Kind::Optimizer,
        "A factored second moment: a row and a column of state for each matrix.",
        "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, https://arxiv.org/abs/1804.04235",
        vec![
            Parameter::number("beta2_decay", -0.8, "the second moment forgets t^this in step t").range(-1.0, 0.0),
            Parameter::number("epsilon1", f64::from(f32::EPSILON), "floor of the second moment's root").range(0.0, 1.0),
            Parameter::number("epsilon2", 1e-3, "floor of the parameter's rms, which scales the step").range(0.0, 1.0),
            Parameter::number("clip", 1.0, "largest rms of an update before scaling").range(1e-6, 1e6),
            super::weight_decay(0.0),
        ],
    )
}

fn make(values: &Values) -> Result<Box<dyn Optimizer>, PluginError> {
    Ok(Box::new(Adafactor {
        beta2_decay: values.number("beta2_decay")?,
        epsilon1: values.number("epsilon1")?,
        epsilon2: values.number("epsilon2")?,
        clip: values.number("clip")?,
        weight_decay: values.number("weight_decay")?,
    }))
}

/// A running mean that takes in `weight` of the new value.
fn follow<'r>(mean: Value<'r>, new: Value<'r>, weight: Value<'r>) -> Value<'r> {
    mean + (new - mean) * weight
}

impl Optimizer for Adafactor {
    fn rule(&self, tensor: &TensorShape) -> Result<Program, PluginError> {
        let rule = Rule::new(tensor);
        let (p, g, lr, t) = (rule.parameter(), rule.gradient(), rule.learning_rate(), rule.step());
        let newness = t.pow(self.beta2_decay);
        let root_n = (tensor.elements() as f64).sqrt();
        let rms = p.norm() / root_n;
        let alpha = rms.max(self.epsilon2) * lr.min(1.0 / t.sqrt());
        let variance = if tensor.is_matrix() {
            let (rows, columns) = (rule.row_state("rows"), rule.column_state("columns"));
            let squared = g * g;
            let new_rows = follow(rows, squared.mean(Axis::EachRow), newness);
            let new_columns = follow(columns, squared.mean(Axis::EachColumn), newness);
            rule.set(rows, new_rows);
            rule.set(columns, new_columns);
            // One number a row before it meets the columns: no matrix of its own.
            new_rows / new_rows.mean(Axis::All).max(self.epsilon1) * new_columns
        } else {
            let v = rule.state("v", StateType::F32);
            let new_v = follow(v, g * g, newness);
            rule.set(v, new_v);
            new_v
        };
        let update = g / variance.max(self.epsilon1 * self.epsilon1).sqrt();
        let excess = (update.norm() / (root_n * self.clip)).max(1.0);
        let decayed = p * (1.0 - lr * self.weight_decay);
        rule.finish(decayed - alpha / excess * update)
    }
}
