//! An example optimizer: Signum, the sign of the momentum
//! (<https://arxiv.org/abs/1802.04434>), with decoupled weight decay.
//!
//! m ← β m + (1 − β) g, p ← (1 − lr λ) p − lr sign(m).
//!
//! The rule is data: the daemon runs it on a CPU or as a kernel on a GPU, and
//! owns, saves and resumes the momentum.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::export_plugins;
use finetuned_plugin_api::optimizer::{Optimizer, TensorShape};
use finetuned_plugin_api::parameters::{Parameter, Parameters, Values};
use finetuned_plugin_api::program::{Program, Rule, StateType};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};

struct Signum {
    beta: f64,
    weight_decay: f64,
}

impl Optimizer for Signum {
    fn rule(&self, tensor: &TensorShape) -> Result<Program, PluginError> {
        let rule = Rule::new(tensor);
        let (p, g, lr) = (rule.parameter(), rule.gradient(), rule.learning_rate());
        let m = rule.state("momentum", StateType::F32);
        let new_m = m * self.beta + g * (1.0 - self.beta);
        rule.set(m, new_m);
        rule.finish(p * (1.0 - lr * self.weight_decay) - lr * new_m.sign())
    }
}

fn descriptor() -> Descriptor {
    Descriptor {
        name: "signum".into(),
        kind: Kind::Optimizer,
        version: env!("CARGO_PKG_VERSION").into(),
        parameters: Parameters(vec![
            Parameter::number("beta", 0.9, "decay of the momentum, a step").range(0.0, 0.999_999),
            Parameter::number("weight_decay", 0.0, "part of the parameter taken off, a unit of learning rate")
                .range(0.0, 1e3),
        ]),
        help: "The sign of the momentum; one f32 state. Wants a smaller learning rate than AdamW.".into(),
        paper: "signSGD, https://arxiv.org/abs/1802.04434".into(),
    }
}

fn make(values: &Values) -> Result<Box<dyn Optimizer>, PluginError> {
    Ok(Box::new(Signum { beta: values.number("beta")?, weight_decay: values.number("weight_decay")? }))
}

export_plugins!(&[BuiltIn { descriptor, make: Make::Optimizer(make) }]);
