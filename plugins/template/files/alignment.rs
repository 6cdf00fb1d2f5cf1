//! An alignment method: edit `loss`, what it needs, and its parameters.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::alignment::{Alignment, AlignmentNeeds, DataKind, Declared};
use finetuned_plugin_api::export_plugins;
use finetuned_plugin_api::loss::Needs;
use finetuned_plugin_api::parameters::{Parameter, Parameters, Values};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};
use finetuned_plugin_api::tape::{Formula, TapeBatch, V, positive};

struct MyMethod {
    beta: f64,
}

impl Formula for MyMethod {
    fn needs(&self) -> Needs {
        Needs { reference_logp: true, ..Needs::default() }
    }

    /// DPO: the mean over pairs of −log σ(β (r_chosen − r_rejected)), r being
    /// log π − log π_ref of a completion.
    fn loss<'t>(&self, batch: &TapeBatch<'t>) -> Result<V<'t>, PluginError> {
        let losses = batch.pairs()?.into_iter().map(|(chosen, rejected)| {
            -((chosen.log_ratio() - rejected.log_ratio()) * self.beta).log_sigmoid()
        });
        Ok(batch.sum(losses) / positive(batch.totals().pairs as f64))
    }
}

fn descriptor() -> Descriptor {
    Descriptor {
        name: "PLUGIN_NAME".into(),
        kind: Kind::Alignment,
        version: env!("CARGO_PKG_VERSION").into(),
        parameters: Parameters(vec![
            Parameter::number("beta", 0.1, "how strongly the policy is held to the reference").range(1e-6, 1e3),
        ]),
        help: "Prefers the chosen answers.".into(),
        paper: "Direct Preference Optimization, https://arxiv.org/abs/2305.18290".into(),
    }
}

fn make(values: &Values) -> Result<Box<dyn Alignment>, PluginError> {
    let needs = AlignmentNeeds { reference: true, ..AlignmentNeeds::only(DataKind::Pairs) };
    Ok(Box::new(Declared { needs, objective: MyMethod { beta: values.number("beta")? } }))
}

export_plugins!(&[BuiltIn { descriptor, make: Make::Alignment(make) }]);
