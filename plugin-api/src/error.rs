//! What goes wrong at the door, in words that name the remedy.

use crate::registry::Kind;

/// An error of a plugin, of its parameters, or of what it was given.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PluginError {
    /// No plugin of that name; `hint` is empty or names the nearest.
    #[error("there is no {kind} named '{name}'{hint}")]
    Unknown { kind: Kind, name: String, hint: String },

    /// A key that the plugin does not state; `hint` is empty or names the nearest.
    #[error("'{plugin}' has no parameter '{key}'{hint}")]
    UnknownParameter { plugin: String, key: String, hint: String },

    /// A value of the wrong type or out of its range.
    #[error("parameter '{key}' of '{plugin}': expected {expected}, got {got}")]
    Parameter { plugin: String, key: String, expected: String, got: String },

    /// A size or a shape that does not fit.
    #[error("{op}: expected {expected}, got {got}")]
    Shape { op: String, expected: String, got: String },

    /// An optimizer's program that is not well formed.
    #[error("optimizer program, instruction {at}: {reason}")]
    Program { at: usize, reason: String },

    /// A batch without something that the loss asked for or relies on.
    #[error("{0}")]
    Batch(String),

    /// What a plugin itself reports.
    #[error("{0}")]
    Failed(String),

    /// A plugin file that is refused; the text names the file and the remedy.
    #[error("{0}")]
    Refused(String),
}

impl PluginError {
    pub(crate) fn shape(op: &str, expected: impl ToString, got: impl ToString) -> PluginError {
        PluginError::Shape { op: op.to_string(), expected: expected.to_string(), got: got.to_string() }
    }
}

/// ` (did you mean 'beta'?)` for the nearest of `names`, or nothing if none is
/// near; see [`crate::suggest::nearest`].
pub fn did_you_mean<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    crate::suggest::nearest(name, names).map(|known| format!(" (did you mean '{known}'?)")).unwrap_or_default()
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
