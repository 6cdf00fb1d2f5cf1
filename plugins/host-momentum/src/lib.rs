//! An example of the escape hatch: an optimizer as a callback on host memory.
//! Heavy-ball momentum, v ← μ v + g, p ← p − lr v.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::export_plugins;
use finetuned_plugin_api::optimizer::{HostOptimizer, Optimizer, TensorShape};
use finetuned_plugin_api::parameters::{Parameter, Parameters, Values};
use finetuned_plugin_api::program::{Initial, Program, Scalars, State, StateType};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};

struct HostMomentum {
    momentum: f32,
}

impl Optimizer for HostMomentum {
    fn rule(&self, _: &TensorShape) -> Result<Program, PluginError> {
        Err(PluginError::Failed("host-momentum steps on the host and has no program".into()))
    }

    fn host(&self) -> Option<&dyn HostOptimizer> {
        Some(self)
    }
}

impl HostOptimizer for HostMomentum {
    fn states(&self, tensor: &TensorShape) -> Result<Vec<State>, PluginError> {
        let (rows, columns) = tensor.matrix();
        let (kind, initial) = (StateType::F32, Initial::Constant(0.0));
        Ok(vec![State { name: "velocity".into(), rows, columns, kind, initial }])
    }

    fn step(
        &self,
        _: &TensorShape,
        parameter: &mut [f32],
        gradient: &[f32],
        states: &mut [Vec<f32>],
        scalars: &Scalars,
    ) -> Result<(), PluginError> {
        let [velocity] = states else { return Err(PluginError::Failed("expected one state".into())) };
        let rate = scalars.learning_rate as f32;
        for ((p, g), v) in parameter.iter_mut().zip(gradient).zip(velocity) {
            *v = self.momentum * *v + g;
            *p -= rate * *v;
        }
        Ok(())
    }
}

fn descriptor() -> Descriptor {
    Descriptor {
        name: "host-momentum".into(),
        kind: Kind::Optimizer,
        version: env!("CARGO_PKG_VERSION").into(),
        parameters: Parameters(vec![
            Parameter::number("momentum", 0.9, "share of the velocity kept, a step").range(0.0, 0.999_999),
        ]),
        help: "Heavy-ball momentum as a callback on host memory: an example of the escape hatch.".into(),
        paper: String::new(),
    }
}

fn make(values: &Values) -> Result<Box<dyn Optimizer>, PluginError> {
    Ok(Box::new(HostMomentum { momentum: values.number("momentum")? as f32 }))
}

export_plugins!(&[BuiltIn { descriptor, make: Make::Optimizer(make) }]);
