//! The built-in losses, optimizers and alignment methods, written against
//! `plugin-api` alone, as any other plugin: [`BUILT_IN`] lists them.

#![forbid(unsafe_code)]

pub mod alignment;
pub mod losses;
pub mod optimizers;

use finetuned_plugin_api::parameters::{Parameter, Parameters};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Registry};

/// Every built-in plugin.
pub static BUILT_IN: &[BuiltIn] = &[
    losses::cross_entropy::PLUGIN,
    losses::focal::PLUGIN,
    losses::entropy_bonus::PLUGIN,
    optimizers::adamw::PLUGIN,
    optimizers::adamw_8bit::PLUGIN,
    optimizers::sgd::PLUGIN,
    optimizers::lion::PLUGIN,
    optimizers::adafactor::PLUGIN,
    optimizers::muon::PLUGIN,
    optimizers::schedule_free_adamw::PLUGIN,
    alignment::dpo::PLUGIN,
    alignment::kto::PLUGIN,
    alignment::orpo::PLUGIN,
    alignment::cpo::PLUGIN,
    alignment::simpo::PLUGIN,
    alignment::reward_model::PLUGIN,
    alignment::unlikelihood::PLUGIN,
];

/// A registry of the built-in plugins.
///
/// # Errors
/// When two entries of [`BUILT_IN`] share a name, which a test rules out.
pub fn registry() -> Result<Registry, finetuned_plugin_api::PluginError> {
    Registry::new(BUILT_IN)
}

fn described(name: &str, kind: Kind, help: &str, paper: &str, parameters: Vec<Parameter>) -> Descriptor {
    Descriptor {
        name: name.into(),
        kind,
        version: env!("CARGO_PKG_VERSION").into(),
        parameters: Parameters(parameters),
        help: help.into(),
        paper: paper.into(),
    }
}
