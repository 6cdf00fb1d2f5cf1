//! What `finetune plugin new` writes: a plugin of each kind that builds and
//! passes the conformance kit untouched, and a copy of plugin-api beside it, so
//! that it builds before plugin-api is on a registry.

#![forbid(unsafe_code)]

use finetuned_plugin_api::registry::Kind;

include!(concat!(env!("OUT_DIR"), "/plugin_api.rs"));

/// A file of a new plugin: its path, with `/`, and its text.
pub type File = (String, String);

/// All files of a new plugin.
///
/// # Errors
/// In words, when the name is none that a plugin and a crate can have.
pub fn files(name: &str, kind: Kind) -> Result<Vec<File>, String> {
    check_name(name)?;
    let source = match kind {
        Kind::Loss => include_str!("../files/loss.rs"),
        Kind::Optimizer => include_str!("../files/optimizer.rs"),
        Kind::Alignment => include_str!("../files/alignment.rs"),
    };
    let table = match kind {
        Kind::Loss | Kind::Alignment => "loss",
        Kind::Optimizer => "optimizer",
    };
    let filled = |text: &str| {
        text.replace("PLUGIN_NAME", name)
            .replace("PLUGIN_CRATE", &name.replace('-', "_"))
            .replace("PLUGIN_KIND", kind.name())
            .replace("PLUGIN_TABLE", table)
    };
    let mut files = vec![
        ("Cargo.toml".to_string(), filled(include_str!("../files/plugin.toml"))),
        ("README.md".to_string(), filled(include_str!("../files/README.md"))),
        (".gitignore".to_string(), "target/\n".to_string()),
        ("src/lib.rs".to_string(), filled(source)),
        ("finetuned-plugin-api/Cargo.toml".to_string(), include_str!("../files/plugin-api.toml").to_string()),
    ];
    files.extend(PLUGIN_API.iter().map(|(path, text)| (format!("finetuned-plugin-api/{path}"), text.to_string())));
    Ok(files)
}

fn check_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good = (1..=64).contains(&name.len())
        && name.chars().all(plain)
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-');
    // A crate of these names could not be built.
    let taken = ["test", "core", "std", "alloc", "finetuned-plugin-api", "self", "super", "crate"].contains(&name);
    match good && !taken {
        true => Ok(()),
        false => {
            Err(format!("'{name}' cannot name a plugin; take lower-case letters, digits and '-', such as my-loss"))
        }
    }
}
