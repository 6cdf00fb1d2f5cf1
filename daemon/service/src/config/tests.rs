use std::time::Duration;

use super::*;

fn sources(dir: &Path) -> Sources {
    Sources { home: Some(dir.join("home")), current_dir: dir.to_path_buf(), ..Sources::default() }
}

fn with_file(text: &str) -> (tempfile::TempDir, Sources) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("finetuned.toml"), text).unwrap();
    let sources = sources(dir.path());
    (dir, sources)
}

#[test]
fn defaults_alone_are_valid() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::load(&sources(dir.path())).unwrap();
    assert_eq!(config.state_dir, dir.path().join("home/finetuned"));
    assert_eq!(config.inbox.paths, [dir.path().join("home/finetuned/inbox")]);
    assert_eq!(config.inbox.settle, Duration::from_secs(5));
    assert_eq!(config.workers.threads, None);
}

#[test]
fn flag_over_variable_over_file_over_default() {
    let (_dir, mut sources) = with_file("[inbox]\nsettle = \"1s\"\nscan_every = \"1m\"\nincomplete_after = \"1m\"\n");
    sources.variables.push(("FINETUNED_INBOX_SETTLE".into(), "2s".into()));
    sources.variables.push(("FINETUNED_INBOX_SCAN_EVERY".into(), "2m".into()));
    sources.flags.push(("inbox.settle".into(), "3s".into(), "--set inbox.settle=3s".into()));
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.inbox.settle, Duration::from_secs(3));
    assert_eq!(config.inbox.scan_every, Duration::from_secs(120));
    assert_eq!(config.inbox.incomplete_after, Duration::from_secs(60));
    assert_eq!(config.inbox.settle_network, Duration::from_secs(30));
    let origin = |key: &str| config.shown.iter().find(|(k, ..)| k == key).unwrap().2.to_string();
    assert_eq!(origin("inbox.settle"), "--set inbox.settle=3s");
    assert_eq!(origin("inbox.scan_every"), "FINETUNED_INBOX_SCAN_EVERY");
    assert!(origin("inbox.incomplete_after").ends_with("finetuned.toml:4"));
    assert_eq!(origin("inbox.settle_network"), "default");
}

#[test]
fn an_unknown_key_names_file_line_and_the_nearest_key() {
    let (_dir, sources) = with_file("state_dir = \"s\"\n\n[inbox]\nscan_evry = \"1s\"\n");
    let error = Config::load(&sources).unwrap_err().to_string();
    assert!(
        error.contains("finetuned.toml:4: unknown key `inbox.scan_evry`; did you mean `inbox.scan_every`?"),
        "{error}"
    );
}

#[test]
fn an_unknown_recipe_key_names_its_line() {
    let (_dir, sources) = with_file("[recipe.train]\nepocs = 1\n");
    let error = Config::load(&sources).unwrap_err().to_string();
    assert!(error.contains("finetuned.toml:2:"), "{error}");
    assert!(error.contains("train.epochs"), "{error}");
}

#[test]
fn every_mistake_is_told_at_once() {
    let (_dir, sources) = with_file(
        "[inbox]\nsettle = 5\nafter = \"mve\"\n[workers]\nmemory = \"lots\"\nparallel = -1\ndevice = \"tpu\"\n",
    );
    let error = Config::load(&sources).unwrap_err();
    assert_eq!(error.0.len(), 5, "{error}");
    assert!(error.to_string().contains("`workers.device`: \"tpu\" is no device; there are auto, cpu"), "{error}");
    assert!(error.to_string().contains("did you mean \"move\"?"), "{error}");
}

#[test]
fn the_output_may_not_lie_in_an_inbox() {
    for text in [
        "state_dir = \"data/in/state\"\n[inbox]\npaths = [\"../../in\"]\n",
        "state_dir = \"state\"\n[inbox]\npaths = [\"adapters\"]\n",
        "state_dir = \"state\"\n[inbox]\npaths = [\".\"]\n",
    ] {
        let (_dir, sources) = with_file(text);
        let error = Config::load(&sources).unwrap_err().to_string();
        assert!(error.contains("beside each other"), "{text}: {error}");
    }
}

#[test]
fn variables_reach_lists_and_the_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let mut sources = sources(dir.path());
    sources.variables.push(("FINETUNED_INBOX_PATHS".into(), "/a:/b".into()));
    sources.variables.push(("FINETUNED_RECIPE_TRAIN_EPOCHS".into(), "7".into()));
    sources.variables.push(("FINETUNED_WORKER_THREADS".into(), "7".into()));
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.inbox.paths, [PathBuf::from("/a"), PathBuf::from("/b")]);
    assert_eq!(config.recipe["train"]["epochs"].as_integer(), Some(7));
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].contains("FINETUNED_WORKERS_THREADS"), "{:?}", config.warnings);
}

/// `#key = value` is a key that is switched off; `# words` is a comment.
fn switched_on(line: &str) -> &str {
    match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest,
        _ => line,
    }
}

const DOCUMENTED: &str = include_str!("../../../../config/finetuned.toml");

/// config/finetuned.toml is the documentation: every key with its help and the
/// default in force.
#[test]
fn the_documented_file_is_the_one_that_the_keys_make() {
    let made = template();
    let differs = made.lines().zip(DOCUMENTED.lines()).find(|(made, documented)| made != documented);
    assert_eq!(differs, None, "run: finetune config template > config/finetuned.toml");
    assert_eq!(made, DOCUMENTED, "run: finetune config template > config/finetuned.toml");
}

#[test]
fn every_key_is_documented_and_its_default_is_in_range() {
    for key in keys::KEYS.iter().chain(keys::RECIPE_KEYS.iter()) {
        assert!(key.help.iter().any(|line| !line.is_empty()), "`{}` has no help", key.path);
        assert!(key.help.iter().all(|line| line.len() <= 88), "a line of the help of `{}` is too long", key.path);
        let shown = key.default.as_deref().or(key.example).unwrap_or_else(|| panic!("`{}` has no example", key.path));
        let value = &format!("v = {shown}").parse::<toml::Table>().unwrap()["v"];
        assert_eq!(key.refuses(value), None, "`{}`", key.path);
    }
    // The default optimizer's own parameters are among them.
    assert!(keys::RECIPE_KEYS.iter().any(|key| key.path == "optimizer.beta1"));
}

/// A key that nothing reads would be a promise that is not kept.
#[test]
fn every_key_is_read_outside_its_declaration() {
    fn collect(folder: &Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true if !path.ends_with("config") => collect(&path, text),
                false if path.extension().is_some_and(|ending| ending == "rs") => {
                    *text += &std::fs::read_to_string(&path).unwrap();
                }
                _ => {}
            }
        }
    }
    let mut text = String::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
    let words: std::collections::BTreeSet<&str> = text
        .split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'))
        .flat_map(|part| part.split('.').skip(1))
        .collect();
    for key in keys::KEYS.iter() {
        // These three are fields of `Config` itself.
        let field = match key.path.as_str() {
            "models.dir" => "models_dir",
            "control.socket" => "socket",
            "log.level" => "log_level",
            _ => key.name(),
        };
        assert!(words.contains(field), "nothing reads `{}`", key.path);
    }
}

#[test]
fn the_schema_has_every_key_with_type_range_and_help() {
    let schema = schema();
    let property = |path: &str| path.split('.').fold(&schema, |at, part| &at["properties"][part]);
    let named = keys::KEYS.iter().map(|key| (key.path.clone(), key));
    for (path, key) in named.chain(keys::RECIPE_KEYS.iter().map(|key| (format!("recipe.{}", key.path), key))) {
        let property = property(&path);
        let types = ["type", "enum", "anyOf"].into_iter().filter(|name| !property[name].is_null()).count();
        assert_eq!(types, 1, "`{path}`: {property}");
        assert_eq!(property["description"], key.help.join(" "));
        assert_eq!(property["default"].is_null(), key.default.is_none(), "`{path}`: {property}");
    }
    let epochs = property("recipe.train.epochs");
    assert_eq!(
        (&epochs["type"], &epochs["exclusiveMinimum"], &epochs["default"]),
        (&"number".into(), &0.0.into(), &3.0.into())
    );
    assert_eq!(property("recipe.method")["enum"], serde_json::json!(["full", "lora", "qlora"]));
    assert_eq!(property("recipe.train.gradient_checkpointing")["x-changes-result"], false);
    assert_eq!(property("inbox")["additionalProperties"], false);
    assert_eq!(property("inbox.scan_every")["x-at-least-seconds"], 0.1);
}

/// As shipped, the file changes nothing, and with every line switched on it
/// is still valid.
#[test]
fn the_documented_file_is_valid() {
    let (_dir, sources) = with_file(DOCUMENTED);
    Config::load(&sources).unwrap();
    let on: String = DOCUMENTED.lines().map(|line| format!("{}\n", switched_on(line))).collect();
    let (_dir, sources) = with_file(&on);
    Config::load(&sources).unwrap();
}
