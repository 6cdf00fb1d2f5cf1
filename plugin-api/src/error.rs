//! What goes wrong with a plugin, in words that name the remedy.

use std::path::PathBuf;

use crate::kind::Kind;
use crate::suggest::nearest;

/// An error of a plugin, of its parameters, of its file, or of what it was given.
///
/// Plugins themselves return [`PluginError::Failed`] and [`PluginError::Parameter`]; the host
/// names the plugin and the call around it ([`PluginError::Call`]).
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PluginError {
    /// No plugin of that kind has the name.
    #[error("there is no {kind} named '{name}'{}", hint(.nearest, "; `finetune plugin list` shows them"))]
    Unknown {
        /// The kind that was asked for.
        kind: Kind,
        /// The name that was asked for.
        name: String,
        /// The known name that it may have meant.
        nearest: Option<String>,
    },

    /// A key that the plugin does not state.
    #[error("'{plugin}' has no parameter '{key}'{}", hint(.nearest, &has(.known)))]
    UnknownParameter {
        /// The plugin's name.
        plugin: String,
        /// The key that was given.
        key: String,
        /// The known key that it may have meant.
        nearest: Option<String>,
        /// Every key that the plugin states.
        known: Vec<String>,
    },

    /// A value of the wrong type or out of its range.
    #[error("parameter '{key}' of '{plugin}': expected {expected}, got {got}")]
    Parameter {
        /// The plugin's name.
        plugin: String,
        /// The parameter's key.
        key: String,
        /// The type and the range, in words: `a number from 0 to 1`.
        expected: String,
        /// The value that was given.
        got: String,
    },

    /// A size or a shape that does not fit.
    #[error("{op}: expected {expected}, got {got}")]
    Shape {
        /// What was checked.
        op: String,
        /// The size that fits.
        expected: String,
        /// The size that was found.
        got: String,
    },

    /// An optimizer's program that is not well formed.
    #[error("optimizer program, instruction {at}: {reason}")]
    Program {
        /// The place of the instruction.
        at: usize,
        /// What is wrong with it.
        reason: String,
    },

    /// A batch without something that the loss asked for or relies on, or numbers that a loss
    /// may not return.
    #[error("{0}")]
    Batch(String),

    /// A check of the conformance kit that a plugin does not pass.
    #[error("{reason}")]
    Conformance {
        /// The check's name.
        check: String,
        /// What the plugin did.
        reason: String,
    },

    /// What a plugin itself reports.
    #[error("{0}")]
    Failed(String),

    /// A call into a loaded library that failed.
    #[error("{}: {message}", call(.plugin, .version, *.step, .function))]
    Call {
        /// The plugin's name, or the library's file name before the plugin has told its name.
        plugin: String,
        /// The plugin's version; empty before the plugin has told it.
        version: String,
        /// The training step; 0 before the first.
        step: u64,
        /// The function of the plugin's table.
        function: String,
        /// What the plugin said, or what was wrong with its answer.
        message: String,
    },

    /// A library that was built for another version of the ABI.
    #[error(
        "{} was built for plugin ABI {found}, this daemon speaks ABI {speaks}; rebuild it with finetuned-plugin-api {}",
        .path.display(), env!("CARGO_PKG_VERSION")
    )]
    Incompatible {
        /// The library.
        path: PathBuf,
        /// The version that it was built for.
        found: u32,
        /// The version that this program speaks.
        speaks: u32,
    },

    /// A plugin file that is refused; the text names the file and the remedy.
    #[error("{0}")]
    Refused(String),

    /// A plugin whose name another one has.
    #[error("the name '{name}' is taken by a {by}; give the plugin another name")]
    NameTaken {
        /// The name.
        name: String,
        /// The kind of the other plugin, and where it comes from.
        by: String,
    },

    /// A file or the system that failed.
    #[error("{what}: {reason}")]
    System {
        /// What was done, or the path.
        what: String,
        /// What the system says.
        reason: String,
    },
}

impl PluginError {
    pub(crate) fn shape(op: &str, expected: impl ToString, got: impl ToString) -> PluginError {
        PluginError::Shape { op: op.to_string(), expected: expected.to_string(), got: got.to_string() }
    }

    /// No plugin of the kind has the name; `known` are the names that there are.
    pub fn unknown<'a>(kind: Kind, name: &str, known: impl IntoIterator<Item = &'a str>) -> PluginError {
        PluginError::Unknown { kind, name: name.into(), nearest: nearest(name, known).map(str::to_string) }
    }

    pub(crate) fn system(what: impl ToString, error: std::io::Error) -> PluginError {
        PluginError::System { what: what.to_string(), reason: error.to_string() }
    }
}

/// ` (did you mean 'beta'?)`, or what else to say.
fn hint(nearest: &Option<String>, otherwise: &str) -> String {
    match nearest {
        Some(known) => format!(" (did you mean '{known}'?)"),
        None => otherwise.to_string(),
    }
}

fn has(known: &[String]) -> String {
    match known {
        [] => "; it has none".into(),
        _ => format!("; it has {}", known.join(", ")),
    }
}

/// `plugin my-loss 0.1.0, step 7, in evaluate`: how a call is named wherever it is.
pub(crate) fn call(plugin: &str, version: &str, step: u64, function: &str) -> String {
    let version = if version.is_empty() { String::new() } else { format!(" {version}") };
    let step = if step == 0 { String::new() } else { format!(" step {step},") };
    format!("plugin {plugin}{version},{step} in {function}")
}

/// ` (did you mean 'beta'?)` for the name that was meant, or nothing if none is near.
pub fn did_you_mean<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    hint(&nearest(name, names).map(str::to_string), "")
}

#[cfg(test)]
mod tests {
    use super::did_you_mean;

    #[test]
    fn the_nearest_name_is_offered_and_a_far_one_is_not() {
        assert_eq!(did_you_mean("bata", ["alpha", "beta"]), " (did you mean 'beta'?)");
        assert_eq!(did_you_mean("cross_entropy", ["focal", "cross-entropy"]), " (did you mean 'cross-entropy'?)");
        assert_eq!(did_you_mean("zebra", ["alpha", "beta"]), "");
    }
}
