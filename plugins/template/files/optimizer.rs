//! An optimizer: edit `rule`, and the parameters beneath it.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::export_plugins;
use finetuned_plugin_api::optimizer::{Optimizer, TensorShape};
use finetuned_plugin_api::parameters::{Parameter, Parameters, Values};
use finetuned_plugin_api::program::{Program, Rule, StateType};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};

struct MyOptimizer {
    momentum: f64,
}

impl Optimizer for MyOptimizer {
    /// The update rule of one tensor, as data: the engine runs it on any
    /// device, and owns, saves and resumes the state.
    fn rule(&self, tensor: &TensorShape) -> Result<Program, PluginError> {
        let rule = Rule::new(tensor);
        let (p, g, lr) = (rule.parameter(), rule.gradient(), rule.learning_rate());
        let m = rule.state("momentum", StateType::F32);
        let new_m = m * self.momentum + g;
        rule.set(m, new_m);
        rule.finish(p - lr * new_m)
    }
}

fn descriptor() -> Descriptor {
    Descriptor {
        name: "PLUGIN_NAME".into(),
        kind: Kind::Optimizer,
        version: env!("CARGO_PKG_VERSION").into(),
        parameters: Parameters(vec![
            Parameter::number("momentum", 0.9, "part of the last step's direction that is kept").range(0.0, 0.999),
        ]),
        help: "Gradient descent with momentum.".into(),
        paper: String::new(),
    }
}

fn make(values: &Values) -> Result<Box<dyn Optimizer>, PluginError> {
    Ok(Box::new(MyOptimizer { momentum: values.number("momentum")? }))
}

export_plugins!(&[BuiltIn { descriptor, make: Make::Optimizer(make) }]);
