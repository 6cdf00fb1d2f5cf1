//! Lists the sources of plugin-api, so that a new plugin can carry a copy.

use std::fmt::Write;
use std::path::{Path, PathBuf};

fn walk(folder: &Path, into: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            walk(&path, into)?;
        } else {
            into.push(path);
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let api = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../plugin-api").canonicalize()?;
    let mut list = String::from("pub(crate) static PLUGIN_API: &[(&str, &str)] = &[\n");
    for folder in ["src", "include"] {
        let folder = api.join(folder);
        println!("cargo::rerun-if-changed={}", folder.display());
        let mut files = Vec::new();
        walk(&folder, &mut files)?;
        for file in files {
            let name = file.strip_prefix(&api)?.to_string_lossy().replace('\\', "/");
            writeln!(list, "    ({name:?}, include_str!({:?})),", file.display().to_string())?;
        }
    }
    list.push_str("];\n");
    std::fs::write(PathBuf::from(std::env::var("OUT_DIR")?).join("plugin_api.rs"), list)?;
    Ok(())
}
