//! The losses, alignment methods and optimizers that a run may name.

pub mod used;

use finetuned_plugin_api::optimizer::Optimizer;
use finetuned_plugin_api::registry::{Kind, Registry};

use crate::error::EngineError;
use crate::recipe::{Recipe, WEIGHT_DECAY};
use crate::vocabulary::PluginLibrary;

/// The built-in losses, optimizers and alignment methods, and those of these
/// libraries, which are loaded into this process for good.
///
/// # Errors
/// A library that cannot be loaded, in one line.
pub fn registry(libraries: &[PluginLibrary]) -> Result<Registry, EngineError> {
    let mut registry = Registry::new(finetuned_standard::BUILT_IN)?;
    for library in libraries {
        for entry in finetuned_plugin_api::abi::load(&library.path, &library.sha256)? {
            // A library may hold more than the recipe asks for: a name of it that
            // is taken stays with whoever had it first, as `finetune plugin list`
            // says.
            let _ = registry.add(entry);
        }
    }
    Ok(registry)
}

/// The recipe's optimizer, with the recipe's weight decay if the recipe gives none
/// and the optimizer has one.
///
/// # Errors
/// An unknown name or parameter, with the nearest known one.
pub fn optimizer(recipe: &Recipe, registry: &Registry) -> Result<Box<dyn Optimizer>, EngineError> {
    let mut parameters = recipe.optimizer.parameters.clone();
    let entry = registry.find(Kind::Optimizer, &recipe.optimizer.name)?;
    let decays = entry.descriptor.parameters.0.iter().any(|p| p.name == "weight_decay");
    if decays && !parameters.contains_key("weight_decay") {
        parameters.insert("weight_decay".into(), WEIGHT_DECAY.into());
    }
    Ok(registry.optimizer(&recipe.optimizer.name, &parameters)?)
}
