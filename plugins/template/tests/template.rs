//! A new plugin builds from its own folder and passes the conformance kit
//! untouched; its copy of plugin-api is whole.

use std::path::Path;
use std::process::Command;

use finetuned_plugin_api::registry::Kind;
use finetuned_plugin_api::{abi, conformance};

#[test]
fn a_new_plugin_of_each_kind_builds_and_conforms() {
    // One folder for all three, so that the dependencies are built once.
    let root = tempfile::tempdir().unwrap();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("template");
    for kind in Kind::ALL {
        let name = format!("my-{kind}");
        let folder = root.path().join(&name);
        for (path, text) in finetuned_template::files(&name, kind).unwrap() {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock");
        std::fs::copy(lock, folder.join("Cargo.lock")).unwrap();
        let built = Command::new(env!("CARGO"))
            .args(["build", "--offline", "--quiet", "--target-dir"])
            .arg(&target)
            .current_dir(&folder)
            .env_remove("RUSTFLAGS")
            // What is tested is that it builds, not how fast it runs.
            .envs([("CARGO_PROFILE_DEV_OPT_LEVEL", "0"), ("CARGO_PROFILE_DEV_DEBUG", "0")])
            .output()
            .unwrap();
        assert!(built.status.success(), "{kind}: {}", String::from_utf8_lossy(&built.stderr));
        let library = format!("{}my_{kind}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        let entries = abi::load(&target.join("debug").join(library), "").unwrap();
        assert_eq!((entries[0].descriptor.name.as_str(), entries[0].descriptor.kind), (name.as_str(), kind));
        for conformance::Check { name: check, .. } in conformance::checks(kind) {
            conformance::run(&entries[0], check).unwrap_or_else(|why| panic!("{kind}, {check}: {why}"));
        }
    }
}

#[test]
fn the_copied_manifest_names_what_plugin_api_depends_on() {
    let read = |path: &str| -> toml::Table {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        std::fs::read_to_string(path).unwrap().parse().unwrap()
    };
    let (copy, real, root) =
        (read("files/plugin-api.toml"), read("../../plugin-api/Cargo.toml"), read("../../Cargo.toml"));
    let names =
        |manifest: &toml::Table| manifest["dependencies"].as_table().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&copy), names(&real));
    let version = |value: &toml::Value| value.as_str().or_else(|| value.get("version")?.as_str()).map(str::to_string);
    for name in names(&copy) {
        let shared = root["workspace"]["dependencies"].get(&name);
        let expected = version(&real["dependencies"][&name]).or_else(|| version(shared?));
        assert_eq!(version(&copy["dependencies"][&name]), expected, "{name}");
    }
    assert_eq!(copy["package"]["version"], root["workspace"]["package"]["version"]);
}

#[test]
fn names_that_no_crate_can_have_are_refused() {
    for name in ["", "My-Loss", "1st", "a b", "../up", "test", "loss-"] {
        assert!(finetuned_template::files(name, Kind::Loss).is_err(), "{name}");
    }
    assert!(finetuned_template::files("my-loss-2", Kind::Loss).is_ok());
}
