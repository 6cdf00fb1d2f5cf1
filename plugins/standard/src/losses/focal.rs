//! Focal loss: cross-entropy that turns away from what is already known.
//!
//! The mean over trained tokens of −(1 − p)^γ log p, with p the token's
//! probability (Focal Loss for Dense Object Detection,
//! <https://arxiv.org/abs/1708.02002>). γ = 0 is cross-entropy.
//!
//! # Worked example
//! One token with p = 0.5, γ = 2: 0.25 · 0.6931 = 0.1733. By log p the
//! derivative is −(1 − p)^γ + γ p (1 − p)^(γ−1) log p = −0.25 − 0.3466 = −0.5966.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::loss::Loss;
use finetuned_plugin_api::parameters::{Parameter, Values};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};
use finetuned_plugin_api::tape::{Formula, TapeBatch, V};

pub const PLUGIN: BuiltIn = BuiltIn { descriptor, make: Make::Loss(make) };

/// See the module's words.
pub struct Focal {
    pub gamma: f64,
}

fn descriptor() -> Descriptor {
    crate::described(
        "focal",
        Kind::Loss,
        "Cross-entropy weighted by (1 − p)^gamma: less for tokens that the model knows.",
        "Focal Loss for Dense Object Detection, https://arxiv.org/abs/1708.02002",
        vec![Parameter::number("gamma", 2.0, "how fast known tokens lose weight; 0 is cross-entropy").range(0.0, 20.0)],
    )
}

fn make(values: &Values) -> Result<Box<dyn Loss>, PluginError> {
    Ok(Box::new(Focal { gamma: values.number("gamma")? }))
}

impl Formula for Focal {
    fn loss<'t>(&self, batch: &TapeBatch<'t>) -> Result<V<'t>, PluginError> {
        let logp = batch.logp();
        // A floor, because a power below 1 has no derivative at 0.
        let unknown = (1.0 - logp.exp()).at_least(1e-7).powf(self.gamma);
        Ok(-batch.token_mean(unknown * logp))
    }
}
