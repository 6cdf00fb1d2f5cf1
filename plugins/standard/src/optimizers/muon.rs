//! Muon: momentum, orthogonalised.
//!
//! For a matrix: b ← μ b + (1 − μ) g, u = (1 − μ) g + μ b (Nesterov), then
//! five Newton-Schulz steps X ← a X + (b A + c A²) X with A = X Xᵀ take the
//! singular values of u / ‖u‖ towards 1, in bfloat16, and
//!
//! p ← (1 − lr λ) p − lr s X
//!
//! with s = √max(1, rows / columns) (`original`), or 0.2 √max(rows, columns)
//! (`match_rms_adamw`, for learning rates as AdamW's). Vectors, embeddings and
//! heads take AdamW's rule at `other_ratio` of the learning rate
//! (<https://kellerjordan.github.io/posts/muon/>,
//! <https://arxiv.org/abs/2502.16982>). The arithmetic is `torch.optim.Muon`'s,
//! its roundings to bfloat16 included.
//!
//! # Worked example
//! A gradient of rank 1 with singular value 5 becomes a step of singular value
//! about 1: 1 → 0.70 → 1.12 → 0.72 → 1.12 → 0.71, the iteration's band.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::optimizer::{Optimizer, TensorKind, TensorShape};
use finetuned_plugin_api::parameters::{Parameter, Values};
use finetuned_plugin_api::program::{Program, Rule, StateType, Value};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};

use super::adamw::AdamW;

pub const PLUGIN: BuiltIn = BuiltIn { descriptor, make: Make::Optimizer(make) };

const A: f64 = 3.4445;
const B: f64 = -4.7750;
const C: f64 = 2.0315;

/// See the module's words.
pub struct Muon {
    pub momentum: f64,
    pub nesterov: bool,
    pub newton_schulz_steps: usize,
    pub match_rms_adamw: bool,
    pub other_ratio: f64,
    /// For what is no matrix; its weight decay is the matrices' too.
    pub adamw: AdamW,
}

fn descriptor() -> Descriptor {
    crate::described(
        "muon",
        Kind::Optimizer,
        "Momentum orthogonalised by Newton-Schulz steps, for matrices; AdamW for the rest.",
        "Muon, https://kellerjordan.github.io/posts/muon/",
        vec![
            Parameter::number("momentum", 0.95, "decay of the momentum, a step").range(0.0, 0.999_999),
            Parameter::boolean("nesterov", true, "look ahead along the momentum"),
            Parameter::integer("newton_schulz_steps", 5, "steps of the orthogonalisation").range(1.0, 20.0),
            Parameter::choice(
                "adjust",
                &["original", "match_rms_adamw"],
                "original",
                "how a step is scaled by the matrix's shape",
            ),
            super::weight_decay(0.1),
            Parameter::number(
                "other_ratio",
                1.0,
                "learning rate of vectors, embeddings and heads, as a part of the run's",
            )
            .range(0.0, 1e3),
            super::beta1(0.9),
            super::beta2(0.95),
            super::epsilon(1e-8),
        ],
    )
}

fn make(values: &Values) -> Result<Box<dyn Optimizer>, PluginError> {
    Ok(Box::new(Muon {
        momentum: values.number("momentum")?,
        nesterov: values.boolean("nesterov")?,
        newton_schulz_steps: usize::try_from(values.integer("newton_schulz_steps")?).unwrap_or(5),
        match_rms_adamw: values.text("adjust")? == "match_rms_adamw",
        other_ratio: values.number("other_ratio")?,
        adamw: AdamW::from_values(values)?,
    }))
}

impl Muon {
    fn takes(&self, tensor: &TensorShape) -> bool {
        tensor.is_matrix() && matches!(tensor.kind, TensorKind::Matrix | TensorKind::LoraA | TensorKind::LoraB)
    }

    /// Towards the nearest matrix with singular values of 1.
    fn orthogonalised<'r>(&self, update: Value<'r>) -> Value<'r> {
        let (rows, columns) = update.size();
        let mut x = update.round_bf16();
        if rows > columns {
            x = x.transpose();
        }
        x = (x / x.norm().round_bf16().max(1e-7)).round_bf16();
        for _ in 0..self.newton_schulz_steps {
            let gram = x.matmul(x.transpose()).round_bf16();
            let polynomial = (gram * B + gram.matmul(gram) * C).round_bf16();
            x = (x * A + polynomial.matmul(x)).round_bf16();
        }
        if rows > columns { x.transpose() } else { x }
    }
}

impl Optimizer for Muon {
    fn rule(&self, tensor: &TensorShape) -> Result<Program, PluginError> {
        if !self.takes(tensor) {
            return self.adamw.program(tensor, StateType::F32, StateType::F32, self.other_ratio);
        }
        let rule = Rule::new(tensor);
        let (p, g, lr) = (rule.parameter(), rule.gradient(), rule.learning_rate());
        let momentum = rule.state("momentum", StateType::F32);
        let new_momentum = momentum.lerp(g, 1.0 - self.momentum);
        rule.set(momentum, new_momentum);
        let update = if self.nesterov { g.lerp(new_momentum, self.momentum) } else { new_momentum };
        let (rows, columns) = (rule.size().0 as f64, rule.size().1 as f64);
        let scale = match self.match_rms_adamw {
            true => 0.2 * rows.max(columns).sqrt(),
            false => (rows / columns).max(1.0).sqrt(),
        };
        let decayed = p * (1.0 - lr * self.adamw.weight_decay);
        rule.finish(decayed - lr * scale * self.orthogonalised(update))
    }
}
