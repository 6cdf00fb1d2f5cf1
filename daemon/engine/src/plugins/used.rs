//! Which plugins a run uses: recorded in run.json (which lies beside the
//! adapter) and in each checkpoint's manifest, and compared on a resume.

use finetuned_plugin_api::registry::{Entry, Kind, Origin, Registry};
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::recipe::Recipe;
use crate::vocabulary::PluginLibrary;

/// A loss, an alignment method or an optimizer of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedPlugin {
    pub kind: Kind,
    pub name: String,
    pub version: String,
    /// `built in`, or the file that it was loaded from.
    pub origin: String,
    /// Of the file's bytes; none for what is built in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl UsedPlugin {
    fn of(entry: &Entry, libraries: &[PluginLibrary]) -> UsedPlugin {
        let descriptor = &entry.descriptor;
        let (origin, sha256) = match &entry.origin {
            Origin::BuiltIn => ("built in".to_string(), None),
            Origin::Library { path, sha256 } => {
                let library = libraries.iter().find(|library| library.path == *path);
                let origin = library.map(|library| &library.origin).filter(|origin| !origin.as_os_str().is_empty());
                (origin.unwrap_or(path).display().to_string(), Some(sha256.clone()))
            }
        };
        UsedPlugin {
            kind: descriptor.kind,
            name: descriptor.name.clone(),
            version: descriptor.version.clone(),
            origin,
            sha256,
        }
    }

    /// `version 0.1.0 (1f2e3d4c5b6a)`, as an error names a build.
    fn build(&self) -> String {
        match &self.sha256 {
            Some(hash) => format!("version {} (sha256 {}…)", self.version, hash.get(..12).unwrap_or(hash)),
            None => format!("the built-in version {}", self.version),
        }
    }
}

/// The objective and the optimizer that a recipe names.
///
/// # Errors
/// A name that no plugin has.
pub fn used(recipe: &Recipe, registry: &Registry, libraries: &[PluginLibrary]) -> Result<Vec<UsedPlugin>, EngineError> {
    let objective = registry.find_objective(&recipe.loss.name)?;
    let optimizer = registry.find(Kind::Optimizer, &recipe.optimizer.name)?;
    Ok([objective, optimizer].map(|entry| UsedPlugin::of(entry, libraries)).to_vec())
}

/// Refuses to go on with another build of a plugin than the run began with.
/// What is built in is part of this program, whose versions resume each other.
///
/// # Errors
/// Names both builds and the ways out.
pub fn refuse_change(began: &[UsedPlugin], now: &[UsedPlugin]) -> Result<(), EngineError> {
    for old in began {
        let same = |new: &&UsedPlugin| new.name == old.name && is_optimizer(new) == is_optimizer(old);
        if let Some(new) = now.iter().find(same)
            && new.sha256 != old.sha256
        {
            return Err(EngineError::PluginChanged { name: old.name.clone(), began: old.build(), now: new.build() });
        }
    }
    Ok(())
}

fn is_optimizer(plugin: &UsedPlugin) -> bool {
    plugin.kind == Kind::Optimizer
}
