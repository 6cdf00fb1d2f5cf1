//! The invariants of ARCHITECTURE.md, held by reading the source.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace")
}

/// Every Rust file of the project, by path from the root.
fn sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for folder in ["plugin-api", "shaders", "daemon", "plugins"] {
        collect(&root(), &root().join(folder), &mut found);
    }
    assert!(found.len() > 100, "the walk finds the project");
    found
}

fn collect(root: &Path, folder: &Path, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_string();
        if path.is_dir() && name != "target" {
            collect(root, &path, found);
        } else if name.ends_with(".rs") {
            let relative = path.strip_prefix(root).expect("inside").to_string_lossy().replace('\\', "/");
            found.insert(relative, std::fs::read_to_string(&path).expect("text"));
        }
    }
}

/// A line's code: comments, and the texts in quotes, say what they like.
fn code(line: &str) -> String {
    let line = line.split("//").next().unwrap_or_default();
    line.split('"').step_by(2).collect()
}

/// Files outside `rooms` whose code has one of these words.
fn strays(words: &[&str], rooms: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in sources() {
        if rooms.iter().any(|room| path.starts_with(room)) || path == "daemon/house/tests/invariants.rs" {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = code(line);
            let named = |word: &&&str| {
                code.match_indices(**word).any(|(at, _)| {
                    let before = code[..at].chars().next_back();
                    let after = code[at + word.len()..].chars().next();
                    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
                    !part(before) && !part(after)
                })
            };
            if let Some(word) = words.iter().find(named) {
                found.push(format!("{path}:{}: {word}", number + 1));
            }
        }
    }
    found
}

#[test]
fn only_shaders_computes_on_a_gpu() {
    assert_eq!(strays(&["cubecl", "cubek", "wgpu"], &["shaders/"]), Vec::<String>::new());
}

#[test]
fn only_the_door_loads_libraries() {
    assert_eq!(
        strays(&["abi_stable", "libloading"], &["plugin-api/src/abi", "plugin-api/tests", "plugins/"]),
        Vec::<String>::new()
    );
}

#[test]
fn only_the_service_is_a_process() {
    let words = ["tokio", "axum", "notify", "rusqlite", "TcpListener", "UnixListener", "UnixStream", "signal_hook"];
    assert_eq!(
        strays(&words, &["daemon/service/", "plugin-api/src/conformance", "plugins/hostile"]),
        Vec::<String>::new()
    );
}

#[test]
fn the_library_crates_never_print_sleep_or_spawn() {
    let words = ["println!", "eprintln!", "print!", "dbg!"];
    // The door's deadline ends a worker whose plugin hangs: its last words are printed.
    let found = strays(&words, &["daemon/service/", "plugin-api/src/abi/calls.rs"]);
    let program = |f: &String| {
        f.contains("/tests") || f.contains("/testing.rs") || f.contains("/examples/") || f.starts_with("plugins/")
    };
    assert_eq!(found.into_iter().filter(|f| !program(f)).collect::<Vec<_>>(), Vec::<String>::new());
    let others = ["daemon/service/", "daemon/formats/", "daemon/data/", "plugin-api/", "plugins/", "shaders/"];
    let found = strays(&["Command", "sleep", "SystemTime"], &others);
    assert_eq!(found.into_iter().filter(|f| !program(f)).collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn unsafe_code_lives_in_named_rooms() {
    let rooms = [
        "shaders/src/cpu/",
        "shaders/src/gpu/launch.rs",
        "shaders/src/ops/program/cpu/prefetch.rs",
        "shaders/bad-device/",
        "plugin-api/src/abi",
        "plugin-api/tests",
        "plugins/",
    ];
    assert_eq!(strays(&["unsafe"], &rooms), Vec::<String>::new());
    for (path, text) in sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let opens = code(line).contains("unsafe {");
            if opens && path.starts_with("shaders/") {
                let above = lines[number.saturating_sub(6)..=number].join("\n");
                assert!(above.contains("SAFETY"), "{path}:{}: an unsafe block without its SAFETY comment", number + 1);
            }
        }
    }
    for crate_root in
        ["daemon/formats/src/lib.rs", "daemon/data/src/lib.rs", "daemon/engine/src/lib.rs", "daemon/service/src/lib.rs"]
    {
        assert!(sources()[crate_root].contains("#![forbid(unsafe_code)]"), "{crate_root}");
    }
}

#[test]
fn crates_depend_downward_only() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("plugin-api", &[][..]),
        ("shaders", &["plugin-api"][..]),
        ("daemon/formats", &[][..]),
        ("daemon/data", &["plugin-api", "formats"][..]),
        ("daemon/engine", &["plugin-api", "shaders", "formats", "data", "standard"][..]),
        ("daemon/service", &["plugin-api", "formats", "data", "engine", "standard", "template"][..]),
        ("plugins/standard", &["plugin-api"][..]),
    ]);
    for (folder, allowed) in allowed {
        let text = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a manifest");
        let manifest: toml::Table = text.parse().expect("TOML");
        let empty = toml::Table::new();
        let named = manifest.get("dependencies").and_then(toml::Value::as_table).unwrap_or(&empty);
        let ours: BTreeSet<&str> = named.keys().filter_map(|name| name.strip_prefix("finetuned-")).collect();
        let strange: Vec<&&str> = ours.iter().filter(|name| !allowed.contains(name)).collect();
        assert!(strange.is_empty(), "{folder} depends on {strange:?}");
    }
}
