//! Builds of plugins that workers died in.

use std::collections::HashMap;

use finetuned_engine::PluginLibrary;

use crate::filesystem::display;

/// Workers that die inside a plugin's calls before its build is in quarantine.
pub const QUARANTINE_AFTER: usize = 2;

/// How often workers died in the calls of one build, and the last time in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crashed {
    /// Workers that died.
    pub count: usize,
    /// `plugin my-loss 0.1.0, step 3, in evaluate: …`.
    pub last: String,
}

/// By SHA-256 of the library.
pub type Crashes = HashMap<String, Crashed>;

/// Why a build must not be loaded, if workers died in it too often.
pub fn quarantine(crashes: &Crashes, name: &str, library: &PluginLibrary) -> Option<String> {
    let crashed = crashes.get(&library.sha256).filter(|crashed| crashed.count >= QUARANTINE_AFTER)?;
    Some(format!(
        "plugin '{name}' is in quarantine: {} workers have died in it, the last of this: {}. Mend and rebuild it: another build of {} may be used at once",
        crashed.count,
        crashed.last,
        display(&library.origin)
    ))
}
