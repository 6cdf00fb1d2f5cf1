//! A loss: edit `loss`, and the parameters beneath it.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::export_plugins;
use finetuned_plugin_api::loss::Loss;
use finetuned_plugin_api::parameters::{Parameter, Parameters, Values};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};
use finetuned_plugin_api::tape::{Formula, TapeBatch, V};

struct MyLoss {
    gamma: f64,
}

impl Formula for MyLoss {
    /// The mean of −(1 − p)^gamma log p over the trained tokens. Write any
    /// formula of the statistics; the derivatives come by themselves.
    fn loss<'t>(&self, batch: &TapeBatch<'t>) -> Result<V<'t>, PluginError> {
        let logp = batch.logp();
        let unknown = (1.0 - logp.exp()).at_least(1e-7);
        Ok(-batch.token_mean(unknown.powf(self.gamma) * logp))
    }
}

fn descriptor() -> Descriptor {
    Descriptor {
        name: "PLUGIN_NAME".into(),
        kind: Kind::Loss,
        version: env!("CARGO_PKG_VERSION").into(),
        parameters: Parameters(vec![
            Parameter::number("gamma", 1.0, "how fast tokens that the model knows lose weight").range(0.0, 10.0),
        ]),
        help: "Cross-entropy that turns away from what the model knows.".into(),
        paper: String::new(),
    }
}

fn make(values: &Values) -> Result<Box<dyn Loss>, PluginError> {
    Ok(Box::new(MyLoss { gamma: values.number("gamma")? }))
}

export_plugins!(&[BuiltIn { descriptor, make: Make::Loss(make) }]);
