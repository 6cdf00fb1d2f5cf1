//! The conformance kit: what a plugin must do beyond its types.
//!
//! [`checks`] lists the checks of a kind; [`run`] runs one. `finetune plugin test` runs each in
//! a process of its own, because a broken plugin may take its process along.

mod batches;
mod objective;
mod optimizer;

use crate::PluginError;
use crate::registry::{Entry, Kind};

/// Something that a plugin of a kind must do.
#[derive(Clone, Copy)]
pub struct Check {
    /// A word: `gradient`.
    pub name: &'static str,
    /// What the plugin does if it passes: `derivatives equal finite differences`.
    pub help: &'static str,
    run: fn(&Entry) -> Result<(), String>,
}

/// The checks of a kind, in the order to run them.
pub fn checks(kind: Kind) -> &'static [Check] {
    match kind {
        Kind::Loss | Kind::Alignment => objective::CHECKS,
        Kind::Optimizer => optimizer::CHECKS,
    }
}

/// Runs one check, by its name.
///
/// # Errors
/// [`PluginError::Conformance`]: why the plugin fails the check, in a line or a few; or a name
/// that no check of this kind has.
pub fn run(entry: &Entry, name: &str) -> Result<(), PluginError> {
    let failed = |reason| PluginError::Conformance { check: name.to_string(), reason };
    let check = checks(entry.descriptor.kind).iter().find(|check| check.name == name);
    let check = check.ok_or_else(|| failed(format!("there is no check '{name}'")))?;
    (check.run)(entry).map_err(failed)
}

fn words(error: PluginError) -> String {
    error.to_string()
}
