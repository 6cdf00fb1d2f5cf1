//! From a library's file to entries of a registry.

use std::path::Path;
use std::sync::Arc;

use super::calls::Caller;
use super::host::Plugin;
use super::table::{ABI_VERSION, HeaderV1, MAGIC, PluginModuleV1Ref, PluginV1, SYMBOL};
use crate::PluginError;
use crate::registry::{Entry, Origin};

/// Loads a library and asks each of its plugins to describe itself.
///
/// The file should be a copy that nobody else writes to
/// ([`discover::keep`](super::discover::keep)); only a process that may die
/// with the plugin should call this. The library stays loaded for good.
///
/// # Errors
/// [`PluginError::Refused`] in one line: not a plugin, built for another ABI
/// version, or of another layout than it says.
pub fn load(path: &Path, sha256: &str) -> Result<Vec<Entry>, PluginError> {
    let refused = |why: String| PluginError::Refused(format!("{} {why}", path.display()));
    // SAFETY: a library's initialisers may do anything; that is why only worker
    // processes load plugins, from folders that only the owner writes to.
    let library = unsafe { libloading::Library::new(path) }
        .map_err(|error| refused(format!("cannot be loaded: {}", why(&error, path))))?;
    // Never unloaded: what it handed out lives as long as the process.
    let library: &'static libloading::Library = Box::leak(Box::new(library));
    type Hand = unsafe extern "C" fn() -> *const HeaderV1;
    // SAFETY: the symbol of this name has this type in every version.
    let hand = unsafe { library.get::<Hand>(SYMBOL.as_bytes()) }
        .map_err(|_| refused(format!("is no finetuned plugin: it has no symbol '{SYMBOL}'")))?;
    // SAFETY: as above.
    let header = unsafe { hand() };
    // SAFETY: a header begins with two u32 in every version.
    let [magic, version] = match header.is_null() {
        true => [0, 0],
        false => unsafe { header.cast::<[u32; 2]>().read_unaligned() },
    };
    if magic != MAGIC {
        return Err(refused(format!("is no finetuned plugin: '{SYMBOL}' hands out no header")));
    }
    if version != ABI_VERSION {
        return Err(PluginError::Incompatible { path: path.to_path_buf(), found: version, speaks: ABI_VERSION });
    }
    check_layout(library, path)?;
    // SAFETY: magic and version say that this is a header of version 1, which
    // is static.
    let header: &'static HeaderV1 = unsafe { &*header };
    if header.plugins.is_null() || header.plugin_count == 0 || header.plugin_count > 1024 {
        return Err(refused("holds no plugins".into()));
    }
    // SAFETY: as above; the header says how many there are.
    let tables: &'static [PluginV1] = unsafe { std::slice::from_raw_parts(header.plugins, header.plugin_count) };
    let mut entries = Vec::new();
    for table in tables {
        let file = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let unnamed = Plugin { table, caller: Arc::new(Caller { plugin: file, version: String::new() }) };
        let descriptor = unnamed.describe()?;
        check_descriptor(&descriptor).map_err(|why| refused(format!("describes itself wrongly: {why}")))?;
        let caller = Caller { plugin: descriptor.name.clone(), version: descriptor.version.clone() };
        let factory = Arc::new(Plugin { table, caller: Arc::new(caller) });
        let origin = Origin::Library { path: path.to_path_buf(), sha256: sha256.into() };
        entries.push(Entry { descriptor, origin, factory });
    }
    Ok(entries)
}

/// Where the library has an `abi_stable` header, its types are compared with
/// ours, field by field.
fn check_layout(library: &libloading::Library, path: &Path) -> Result<(), PluginError> {
    let name = super::export::ROOT_SYMBOL;
    // SAFETY: only its presence is asked for.
    let present = unsafe { library.get::<*const u8>(name.as_bytes()) }.is_ok();
    if !present {
        return Ok(());
    }
    let header = abi_stable::library::lib_header_from_path(path);
    let module = header.and_then(|header| header.init_root_module::<PluginModuleV1Ref>());
    module.map(|_| ()).map_err(|error| {
        // The cause of a long report is in its last lines.
        let report = error.to_string();
        let lines: Vec<&str> = report.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines[lines.len().saturating_sub(6)..].join("; ");
        PluginError::Refused(format!(
            "{} has another layout than plugin ABI {ABI_VERSION}; rebuild it with finetuned-plugin-api {} ({last})",
            path.display(),
            env!("CARGO_PKG_VERSION")
        ))
    })
}

/// What the system says: its words are in the last of the causes.
fn why(error: &libloading::Error, path: &Path) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    // It begins with the path, which the reader has already.
    let words = one_line(&cause.to_string());
    words.strip_prefix(&format!("{}: ", path.display())).map_or(words.clone(), str::to_string)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A name that a recipe can hold, and defaults that its own rules accept.
fn check_descriptor(descriptor: &crate::registry::Descriptor) -> Result<(), String> {
    let name = &descriptor.name;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        return Err(format!("the name '{name}' is not lower-case letters, digits and '-'"));
    }
    let stated: serde_json::Map<String, serde_json::Value> =
        descriptor.parameters.0.iter().map(|parameter| (parameter.name.clone(), parameter.default.clone())).collect();
    descriptor.check(&stated).map(|_| ()).map_err(|error| format!("its defaults: {error}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_root_modules_symbol_is_abi_stables() {
        assert_eq!(super::super::export::ROOT_SYMBOL, abi_stable::library::ROOT_MODULE_LOADER_NAME);
    }
}
