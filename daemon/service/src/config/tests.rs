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

/// config/finetuned.toml is the documentation: it lists every key, with the
/// default in force.
#[test]
fn the_documented_file_lists_every_key() {
    let text = include_str!("../../../../config/finetuned.toml");
    let mut section = String::new();
    let mut listed = std::collections::BTreeMap::new();
    for line in text.lines() {
        let line = switched_on(line);
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some((key, value)) = line.split_once(" = ")
            && !line.starts_with('#')
        {
            listed.insert(format!("{section}{}", key.trim()), value.trim().to_string());
        }
    }
    let mut expected = std::collections::BTreeMap::new();
    for key in keys::KEYS {
        expected.insert(key.path.to_string(), key.default.to_string());
    }
    for key in recipe::KEYS {
        expected.insert(format!("recipe.{}", key.path), key.default.to_string());
    }
    for (key, default) in &expected {
        let value = listed.get(key).unwrap_or_else(|| panic!("config/finetuned.toml does not list `{key}`"));
        // A default in words ("unset", "2e-4 (full: 2e-5)") cannot be written as a value.
        let in_words = default.contains("unset") || default.contains('(');
        assert!(in_words || value == default, "config/finetuned.toml: `{key}` is {value}, its default is {default}");
    }
    for key in listed.keys() {
        assert!(expected.contains_key(key), "config/finetuned.toml lists `{key}`, which is no key");
    }
}

/// As shipped, the file changes nothing, and with every line switched on it
/// is still valid.
#[test]
fn the_documented_file_is_valid() {
    let text = include_str!("../../../../config/finetuned.toml");
    let (_dir, sources) = with_file(text);
    Config::load(&sources).unwrap();
    let on: String = text.lines().map(|line| format!("{}\n", switched_on(line))).collect();
    let (_dir, sources) = with_file(&on);
    Config::load(&sources).unwrap();
}
