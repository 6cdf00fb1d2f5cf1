//! The door, with real libraries: Rust plugins by both ways, a frozen one, one
//! in C, hostile ones in child processes, and the files they come from.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use finetuned_plugin_api::abi::{self, calls, discover};
use finetuned_plugin_api::conformance;
use finetuned_plugin_api::loss::{Gradients, Loss, OwnedBatch, Sequence, Statistic, Totals};
use finetuned_plugin_api::optimizer::{TensorKind, TensorShape};
use finetuned_plugin_api::registry::{Entry, Kind, Origin, Registry};

fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A folder for what these tests build.
fn work() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
}

fn library(name: &str) -> String {
    format!("{}{name}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX)
}

/// The folder with the Rust plugins of this workspace, built once.
fn plugins() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        // The target folder of this very test, so that dependencies are there.
        let profile = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_path_buf();
        let release = profile.ends_with("release");
        let built = Command::new(env!("CARGO"))
            .args([
                "build",
                "--offline",
                "--quiet",
                "-p",
                "hard-tokens",
                "-p",
                "signum",
                "-p",
                "hostile",
                "--target-dir",
            ])
            .arg(profile.parent().unwrap())
            .args(release.then_some("--release"))
            .current_dir(here())
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        profile
    })
}

fn compile(program: &str, arguments: &[&str], into: &Path) {
    let built = Command::new(program).args(arguments).arg("-o").arg(into).current_dir(here()).output().unwrap();
    assert!(built.status.success(), "{program}: {}", String::from_utf8_lossy(&built.stderr));
}

fn load(path: &Path) -> Vec<Entry> {
    abi::load(path, "abc").unwrap()
}

fn registry(entries: &[Entry]) -> Registry {
    let mut registry = Registry::default();
    entries.iter().for_each(|entry| registry.add(entry.clone()).unwrap());
    registry
}

fn batch() -> OwnedBatch {
    let sequences = vec![Sequence { tokens: 0..3, ..Sequence::default() }];
    let (weight, completion) = (vec![1.0, 1.0, 0.0], vec![true; 3]);
    let mut batch = OwnedBatch {
        token: vec![1, 2, 3],
        totals: Totals::of(&sequences, &weight, &completion),
        weight,
        completion,
        sequences,
        ..OwnedBatch::default()
    };
    *batch.logp_mut() = vec![-0.5, -1.0, -2.0];
    batch
}

fn evaluate(loss: &dyn Loss) -> Result<Gradients, String> {
    let mut out = Gradients::default();
    loss.evaluate(&batch().view(), &mut out).map(|()| out).map_err(|error| error.to_string())
}

#[test]
fn many_libraries_of_one_kind_live_side_by_side_and_conform() {
    let mut entries = load(&plugins().join(library("hard_tokens")));
    entries.extend(load(&plugins().join(library("signum"))));
    let c = work().join(library("brier"));
    compile(
        "cc",
        &["-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Iinclude", "../plugins/c-brier/brier.c", "-lm"],
        &c,
    );
    entries.extend(load(&c));
    let registry = registry(&entries);
    let names: Vec<&str> = registry.entries().iter().map(|entry| entry.descriptor.name.as_str()).collect();
    assert_eq!(names, ["hard-tokens", "signum", "c-brier"]);
    assert!(matches!(&registry.entries()[0].origin, Origin::Library { sha256, .. } if sha256 == "abc"));
    for entry in registry.entries() {
        for conformance::Check { name: check, .. } in conformance::checks(entry.descriptor.kind) {
            let name = &entry.descriptor.name;
            conformance::run(entry, check).unwrap_or_else(|why| panic!("{name}, {check}: {why}"));
        }
    }
    // (1 − p)² over two tokens of three.
    let brier = registry.loss("c-brier", &Default::default()).unwrap();
    let out = evaluate(brier.as_ref()).unwrap();
    let miss = |logp: f64| (1.0 - logp.exp()).powi(2);
    assert!((out.loss - (miss(-0.5) + miss(-1.0)) / 2.0).abs() < 1e-9);
    assert_eq!(out.derivatives[Statistic::Logp][2], 0.0);
    // Parameters are checked on this side of the door.
    let given = serde_json::from_str(r#"{"laen": 2.0}"#).unwrap();
    let error = registry.loss("hard-tokens", &given).err().unwrap().to_string();
    assert_eq!(error, "'hard-tokens' has no parameter 'laen' (did you mean 'lean'?)");
}

#[test]
fn a_plugin_frozen_at_version_1_loads() {
    let frozen = work().join(library("frozen_v1"));
    compile(
        "rustc",
        &["--edition", "2024", "--crate-type", "cdylib", "-C", "opt-level=1", "tests/frozen/v1.rs"],
        &frozen,
    );
    let registry = registry(&load(&frozen));
    let given = serde_json::from_str(r#"{"factor": 3.0}"#).unwrap();
    let loss = registry.loss("frozen-loss", &given).unwrap();
    let out = evaluate(loss.as_ref()).unwrap();
    assert_eq!(out.loss, 3.0 * 1.5 / 2.0);
    assert_eq!(out.derivatives[Statistic::Logp], [-1.5, -1.5, 0.0]);
    assert_eq!(out.metrics, [("twice".to_string(), out.loss)]);
    let sgd = registry.optimizer("frozen-sgd", &Default::default()).unwrap();
    let tensor = |n| TensorShape { shape: vec![n], name: "w".into(), kind: TensorKind::Norm };
    assert_eq!(sgd.rule(&tensor(3)).unwrap().code().len(), 5);
    let error = sgd.rule(&tensor(4)).unwrap_err().to_string();
    assert_eq!(error, "plugin frozen-sgd 1.0.0, in rule: a program of 1 by 3 for a tensor of [4]");
}

#[test]
fn what_is_no_plugin_is_refused_in_one_line() {
    let refused = |path: &Path| {
        let error = abi::load(path, "").err().unwrap().to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    };
    let text = work().join("no-library.so");
    std::fs::write(&text, "not a library").unwrap();
    let words = refused(&text);
    assert!(words.contains("cannot be loaded: ") && !words.ends_with("dlopen failed"), "{words}");
    assert_eq!(words.matches(text.to_str().unwrap()).count(), 1, "the system's words, the path once: {words}");
    let source = work().join("other.c");
    std::fs::write(&source, "int other(void) { return 1; }\n").unwrap();
    let other = work().join(library("other"));
    compile("cc", &["-shared", "-fPIC", source.to_str().unwrap()], &other);
    assert!(refused(&other).contains("is no finetuned plugin: it has no symbol 'finetuned_plugin'"));
    std::fs::write(&source, "const void *finetuned_plugin(void) { static int x[4] = {1, 2, 3, 4}; return x; }\n")
        .unwrap();
    let liar = work().join(library("liar"));
    compile("cc", &["-shared", "-fPIC", source.to_str().unwrap()], &liar);
    assert!(refused(&liar).contains("hands out no header"));
    std::fs::write(
        &source,
        "const void *finetuned_plugin(void) { static unsigned x[9] = {0x4654504cu, 9}; return x; }\n",
    )
    .unwrap();
    let newer = work().join(library("newer"));
    compile("cc", &["-shared", "-fPIC", source.to_str().unwrap()], &newer);
    let error = refused(&newer);
    let expected = "was built for plugin ABI 9, this daemon speaks ABI 1; rebuild it with finetuned-plugin-api";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn the_c_header_has_the_tables_sizes() {
    use abi::table::*;
    let sizes = [
        ("ft_bytes", size_of::<Bytes>()),
        ("ft_floats_mut", size_of::<FloatsMut>()),
        ("ft_sink", size_of::<Sink>()),
        ("ft_metric_sink", size_of::<MetricSink>()),
        ("ft_sequence_v1", size_of::<SequenceV1>()),
        ("ft_role_totals_v1", size_of::<RoleTotalsV1>()),
        ("ft_totals_v1", size_of::<TotalsV1>()),
        ("ft_batch_v1", size_of::<BatchV1>()),
        ("ft_gradients_v1", size_of::<GradientsV1>()),
        ("ft_needs_v1", size_of::<NeedsV1>()),
        ("ft_alignment_needs_v1", size_of::<AlignmentNeedsV1>()),
        ("ft_token_rule_v1", size_of::<TokenRuleV1>()),
        ("ft_host_step_v1", size_of::<HostStepV1>()),
        ("ft_plugin_v1", size_of::<PluginV1>()),
        ("ft_header_v1", size_of::<HeaderV1>()),
    ];
    let offsets = [
        ("ft_sequence_v1", "reward", std::mem::offset_of!(SequenceV1, reward)),
        ("ft_batch_v1", "context_length", std::mem::offset_of!(BatchV1, context_length)),
        ("ft_batch_v1", "values", std::mem::offset_of!(BatchV1, values)),
        ("ft_gradients_v1", "metrics", std::mem::offset_of!(GradientsV1, metrics)),
        ("ft_plugin_v1", "evaluate", std::mem::offset_of!(PluginV1, evaluate)),
        ("ft_plugin_v1", "alignment_needs", std::mem::offset_of!(PluginV1, alignment_needs)),
        ("ft_plugin_v1", "host_step", std::mem::offset_of!(PluginV1, host_step)),
        ("ft_header_v1", "plugins", std::mem::offset_of!(HeaderV1, plugins)),
        ("ft_host_step_v1", "step", std::mem::offset_of!(HostStepV1, step)),
    ];
    let mut source = String::from("#include \"finetuned_plugin.h\"\n");
    for (name, size) in sizes {
        source.push_str(&format!("_Static_assert(sizeof({name}) == {size}, \"{name}\");\n"));
    }
    for (name, field, offset) in offsets {
        source.push_str(&format!("_Static_assert(offsetof({name}, {field}) == {offset}, \"{name}.{field}\");\n"));
    }
    let file = work().join("sizes.c");
    std::fs::write(&file, source).unwrap();
    compile("cc", &["-c", "-Iinclude", file.to_str().unwrap()], &work().join("sizes.o"));
}

#[cfg(unix)]
mod files {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_that_others_could_have_written_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("plugins");
        std::fs::create_dir(&inner).unwrap();
        mode(&inner, 0o755);
        let file = inner.join(library("x"));
        std::fs::write(&file, "x").unwrap();
        mode(&file, 0o644);
        discover::check_owner(&file).unwrap();
        mode(&file, 0o664);
        let error = discover::check_owner(&file).unwrap_err().to_string();
        assert!(error.contains("is writable by others; run: chmod go-w"), "{error}");
        mode(&file, 0o644);
        mode(&inner, 0o777);
        let error = discover::check_owner(&file).unwrap_err().to_string();
        assert!(
            error.contains(&format!("refused: {} is writable", inner.canonicalize().unwrap().display())),
            "{error}"
        );
        let found = discover::find(std::slice::from_ref(&inner));
        assert!(found[0].refused.is_some());
        // Only root can give a file away; elsewhere this part has nothing to do.
        mode(&inner, 0o755);
        if std::os::unix::fs::chown(&file, Some(4711), None).is_ok() {
            let error = discover::check_owner(&file).unwrap_err().to_string();
            assert!(error.contains("belongs to user 4711"), "{error}");
        }
    }

    #[test]
    fn replacing_a_plugin_never_changes_what_was_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let file = folder.path().join(library("plugin"));
        std::fs::copy(plugins().join(library("hard_tokens")), &file).unwrap();
        mode(&file, 0o755);
        let (first, entries) = discover::keep_and_load(&file, &cache).unwrap();
        let loss = registry(&entries).loss("hard-tokens", &Default::default()).unwrap();
        let before = evaluate(loss.as_ref()).unwrap();
        // In place, as a careless build does: the loaded copy is another file.
        std::fs::write(&file, std::fs::read(plugins().join(library("signum"))).unwrap()).unwrap();
        assert_eq!(evaluate(loss.as_ref()).unwrap(), before);
        let (second, entries) = discover::keep_and_load(&file, &cache).unwrap();
        assert_eq!(entries[0].descriptor.name, "signum");
        assert_ne!(first.sha256, second.sha256);
        assert_eq!(discover::keep(&file, &cache).unwrap(), second);
    }
}

/// What a hostile plugin's process came to.
struct End {
    status: std::process::ExitStatus,
    output: String,
    note: Option<String>,
}

/// Runs one hostile plugin in a child of this test: a worker.
fn worker(plugin: &str) -> End {
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("call");
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_worker_of_hostile_plugins", "--nocapture", "--test-threads", "1"])
        .env("HOSTILE_LIBRARY", plugins().join(library("hostile")))
        .env("HOSTILE_PLUGIN", plugin)
        .env("HOSTILE_NOTE", &note)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    End { status: child.status, output, note: calls::last_call(&note).unwrap() }
}

/// The child's body; without the parent's environment it has nothing to do.
#[test]
fn a_worker_of_hostile_plugins() {
    let (Ok(library), Ok(plugin)) = (std::env::var("HOSTILE_LIBRARY"), std::env::var("HOSTILE_PLUGIN")) else {
        return;
    };
    calls::note_calls_in(Path::new(&std::env::var("HOSTILE_NOTE").unwrap())).unwrap();
    let limits = calls::Limits { time: Duration::from_millis(700), memory_bytes: 256 << 20 };
    // Memory is judged with time to spare.
    let time = if plugin == "hostile-memory" { Duration::from_secs(60) } else { limits.time };
    calls::watch(calls::Limits { time, ..limits }).unwrap();
    let registry = registry(&load(Path::new(&library)));
    let loss = registry.loss(&plugin, &Default::default()).unwrap();
    calls::set_step(7);
    match evaluate(loss.as_ref()) {
        Ok(_) => println!("RESULT fine"),
        Err(error) => println!("RESULT {error}"),
    }
}

#[test]
fn hostile_plugins_fail_alone_and_by_name() {
    let said = |plugin: &str, words: &str| {
        let end = worker(plugin);
        assert!(end.status.success(), "{plugin}: {}", end.output);
        assert!(end.output.contains(&format!("RESULT {words}")), "{plugin}: {}", end.output);
        assert_eq!(end.note, None, "{plugin}");
    };
    said("hostile-panic", "plugin hostile-panic 0.6.6, step 7, in evaluate: panicked: at the disco");
    said("hostile-nan", "plugin hostile-nan 0.6.6, step 7, in evaluate: dlogp of token 0 is NaN");
    said(
        "hostile-wrong-length",
        "plugin hostile-wrong-length 0.6.6, step 7, in evaluate: dlogp: expected 3 values, got 4",
    );

    for plugin in ["hostile-segfault", "hostile-exit"] {
        let end = worker(plugin);
        assert!(!end.output.contains("RESULT"), "{plugin}: {}", end.output);
        assert_eq!(end.note, Some(format!("plugin {plugin} 0.6.6, step 7, in evaluate")));
    }
    let end = worker("hostile-hang");
    assert_eq!(end.status.code(), Some(calls::EXIT_DEADLINE));
    let note = "plugin hostile-hang 0.6.6, step 7, in evaluate: did not return within 0.7 s";
    assert_eq!(end.note.as_deref(), Some(note));
    let end = worker("hostile-memory");
    assert_eq!(end.status.code(), Some(calls::EXIT_MEMORY), "{}", end.output);
    let note = end.note.unwrap();
    assert!(
        note.starts_with("plugin hostile-memory 0.6.6, step 7, in evaluate: took ")
            && note.ends_with("MiB of memory in one call"),
        "{note}"
    );
}

#[test]
fn a_library_of_another_abi_version_is_refused_by_name() {
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_child_that_loads_a_liar", "--nocapture"])
        .env("HOSTILE_VERSION", "9")
        .env("HOSTILE_LIBRARY", plugins().join(library("hostile")))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("was built for plugin ABI 9, this daemon speaks ABI 1; rebuild it"), "{text}");
}

/// The child's body, as above.
#[test]
fn a_child_that_loads_a_liar() {
    let (Ok(library), Ok(_)) = (std::env::var("HOSTILE_LIBRARY"), std::env::var("HOSTILE_VERSION")) else { return };
    match abi::load(Path::new(&library), "") {
        Ok(_) => println!("loaded"),
        Err(error) => println!("{error}"),
    }
}

#[test]
fn a_name_is_given_once() {
    let entries = load(&plugins().join(library("hard_tokens")));
    let mut registry = registry(&entries);
    let error = registry.add(entries[0].clone()).unwrap_err().to_string();
    assert!(error.contains("the name 'hard-tokens' is taken by a loss that comes from"), "{error}");
    assert_eq!(entries[0].descriptor.kind, Kind::Loss);
}
