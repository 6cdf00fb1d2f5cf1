//! An example loss: cross-entropy that leans on hard tokens.
//!
//! The mean over trained tokens of −log p, each weighted by
//! 1 + `lean` · tanh(−log p / `scale`): a token that the model finds unlikely
//! counts up to 1 + `lean` times.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::export_plugins;
use finetuned_plugin_api::loss::Loss;
use finetuned_plugin_api::parameters::{Parameter, Parameters, Values};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};
use finetuned_plugin_api::tape::{Formula, TapeBatch, V};

struct HardTokens {
    lean: f64,
    scale: f64,
}

impl Formula for HardTokens {
    fn loss<'t>(&self, batch: &TapeBatch<'t>) -> Result<V<'t>, PluginError> {
        let nll = -batch.logp();
        // tanh(x) = 2 σ(2x) − 1.
        let hardness = (nll * (2.0 / self.scale)).sigmoid() * 2.0 - 1.0;
        Ok(batch.token_mean((hardness * self.lean + 1.0) * nll))
    }
}

fn descriptor() -> Descriptor {
    Descriptor {
        name: "hard-tokens".into(),
        kind: Kind::Loss,
        version: env!("CARGO_PKG_VERSION").into(),
        parameters: Parameters(vec![
            Parameter::number("lean", 1.0, "how much more the hardest tokens count").range(0.0, 10.0),
            Parameter::number("scale", 2.0, "what is hard, in nats").range(0.01, 100.0),
        ]),
        help: "Cross-entropy that leans on tokens the model finds unlikely.".into(),
        paper: String::new(),
    }
}

fn make(values: &Values) -> Result<Box<dyn Loss>, PluginError> {
    Ok(Box::new(HardTokens { lean: values.number("lean")?, scale: values.number("scale")? }))
}

export_plugins!(&[BuiltIn { descriptor, make: Make::Loss(make) }]);
