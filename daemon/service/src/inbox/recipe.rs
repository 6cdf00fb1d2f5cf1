//! The effective recipe of a dataset: finetuned.toml's `[recipe]`, the
//! folder's recipe.toml, dataset.toml's `[recipe]`, the sidecar.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use finetuned_engine::recipe::{self, Recipe};
use serde::Deserialize;

use crate::config::{TomlFile, place_recipe_error};
use crate::error::{Error, Result};
use crate::filesystem::{self, open_beneath};
use crate::plugins::{Pinned, Problem};

use super::listing::{Candidate, DATASET_FILE};
use super::names;

/// Recipes are small; what is larger is something else.
const LARGEST_RECIPE: u64 = 1 << 20;

/// What is trained from a candidate: its data, its validation file, its recipe.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    /// Relative to the inbox.
    pub data: PathBuf,
    /// Relative to the inbox.
    pub validation: Option<PathBuf>,
    /// All layers together.
    pub recipe: Recipe,
    /// Where the keys of the plugins' tables were set: `loss.beta` to `a.toml:3`.
    pub places: BTreeMap<String, String>,
}

impl Effective {
    /// A problem of the recipe's plugins, with its place where a file of the inbox
    /// set the key.
    pub fn placed(&self, problem: Problem) -> Error {
        let mut text = match self.places.get(&problem.key) {
            Some(place) => format!("{place}: {problem}"),
            None => problem.to_string(),
        };
        // The plugin, not the recipe, may be what is to be mended.
        if problem.key.ends_with(".name") {
            text += &format!(" (after installing a plugin: touch {})", self.data.display());
        }
        Error::new(problem.kind, text)
    }
}

/// dataset.toml without its recipe.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct DatasetFile {
    data: Option<String>,
    validation: Option<String>,
    recipe: toml::Table,
}

/// Works out what a candidate is trained with.
///
/// # Errors
/// `file:line: what is wrong`, for the receipt.
pub fn effective(inbox: &Path, candidate: &Candidate, defaults: &toml::Table) -> Result<Effective> {
    let mut merged = defaults.clone();
    let mut places = BTreeMap::new();
    for path in &candidate.recipes {
        let layer = read_layer(inbox, path)?;
        add_layer(&mut merged, &layer.table, &layer, "")?;
        note_places(&mut places, &layer.table, &layer, "");
        check_base(inbox, path, &layer.table, &layer, "")?;
    }
    let (data, validation) = if candidate.is_folder {
        let path = candidate.path.join(DATASET_FILE);
        let file = read_layer(inbox, &path)?;
        let dataset: DatasetFile = file
            .table
            .clone()
            .try_into()
            .map_err(|error: toml::de::Error| Error::bad_input(format!("{}: {}", file.name, error.message())))?;
        add_layer(&mut merged, &dataset.recipe, &file, "recipe.")?;
        note_places(&mut places, &dataset.recipe, &file, "recipe.");
        check_base(inbox, &path, &dataset.recipe, &file, "recipe.")?;
        folder_files(inbox, candidate, &dataset, &file)?
    } else {
        (candidate.path.clone(), None)
    };
    let recipe =
        Recipe::from_table(&merged).map_err(|error| Error::bad_input(format!("the recipe as a whole: {error}")))?;
    Ok(Effective { data, validation, recipe, places })
}

/// The key of a job: its data and everything about the run that is a choice,
/// the builds of its plugins included.
pub fn key(
    data_sha256: &str,
    validation_sha256: Option<&str>,
    adapter: Option<&Path>,
    recipe: &Recipe,
    plugins: &[Pinned],
) -> String {
    let recipe = serde_json::to_value(recipe).unwrap_or_default();
    let mut parts = vec![serde_json::json!(validation_sha256), serde_json::json!(adapter), sorted(&recipe)];
    // Added only if there are any: the keys of jobs without plugins must not change.
    parts.extend(plugins.iter().map(|plugin| plugin.library.sha256.clone().into()));
    let text = serde_json::Value::Array(parts).to_string();
    format!("{data_sha256}:{}", filesystem::sha256_of_bytes(text.as_bytes()))
}

/// With the keys of every object in order, so that equal recipes are equal
/// texts.
fn sorted(value: &serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().map(|(key, value)| (key.clone(), sorted(value))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            serde_json::Value::Object(entries.into_iter().collect())
        }
        serde_json::Value::Array(list) => list.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

fn read_layer(inbox: &Path, path: &Path) -> Result<TomlFile> {
    let name = path.display().to_string();
    let unreadable = |error: std::io::Error| Error::bad_input(format!("{name}: {error}"));
    let file = open_beneath(inbox, path).map_err(unreadable)?;
    let mut text = String::new();
    file.take(LARGEST_RECIPE + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > LARGEST_RECIPE {
        return Err(Error::bad_input(format!("{name}: larger than {LARGEST_RECIPE} bytes, so it is not a recipe")));
    }
    TomlFile::parse(&name, &text).map_err(|error| Error::bad_input(format!("{error:#}")))
}

fn add_layer(merged: &mut toml::Table, layer: &toml::Table, file: &TomlFile, prefix: &str) -> Result<()> {
    // Each layer is checked by itself, while the file and line are known.
    Recipe::from_table(layer).map_err(|error| Error::bad_input(place_recipe_error(&error, file, prefix)))?;
    recipe::merge(merged, layer);
    Ok(())
}

/// Remembers which file and line set each key of a plugin's table; later layers win.
fn note_places(places: &mut BTreeMap<String, String>, layer: &toml::Table, file: &TomlFile, prefix: &str) {
    for section in ["loss", "optimizer"] {
        let mut note = |key: &str, inside: &str| {
            places.insert(format!("{section}.{key}"), file.place(&format!("{prefix}{inside}")));
        };
        match layer.get(section) {
            Some(toml::Value::String(_)) => note("name", section),
            Some(toml::Value::Table(table)) => {
                table.keys().for_each(|key| note(key, &format!("{section}.{key}")));
            }
            _ => {}
        }
    }
}

/// An inbox may be shared: whoever may write to it must not make the daemon
/// read any folder of the machine. A recipe of the daemon's own user may.
fn check_base(inbox: &Path, path: &Path, layer: &toml::Table, file: &TomlFile, prefix: &str) -> Result<()> {
    let Some(base) = layer.get("base").and_then(toml::Value::as_str) else { return Ok(()) };
    let plain = !base.contains("://")
        && !base.starts_with('~')
        && Path::new(base).components().all(|part| matches!(part, Component::Normal(_)));
    let own = std::fs::symlink_metadata(inbox.join(path))
        .is_ok_and(|found| found.uid() == rustix::process::geteuid().as_raw());
    if plain || (own && !base.contains("://")) {
        return Ok(());
    }
    let place = file.place(&format!("{prefix}base"));
    let message = format!(
        "{place}: `base` = \"{base}\": a recipe in an inbox names a model of the models folder or of the catalogue"
    );
    Err(Error::bad_input(message).remedy("a path belongs into finetuned.toml"))
}

/// The data and validation files of a folder with dataset.toml.
fn folder_files(
    inbox: &Path,
    candidate: &Candidate,
    dataset: &DatasetFile,
    file: &TomlFile,
) -> Result<(PathBuf, Option<PathBuf>)> {
    let named = |key: &str, name: &str| -> Result<PathBuf> {
        let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        let place = file.place(key);
        if !inside || name.contains('/') {
            return Err(Error::bad_input(format!("{place}: `{key}` names a file of the folder, not {name:?}")));
        }
        let path = candidate.path.join(name);
        open_beneath(inbox, &path)
            .map_err(|error| Error::bad_input(format!("{place}: `{key}` = \"{name}\": {error}")))?;
        Ok(path)
    };
    let validation = dataset.validation.as_deref().map(|name| named("validation", name)).transpose()?;
    if let Some(name) = &dataset.data {
        return Ok((named("data", name)?, validation));
    }
    let folder = inbox.join(&candidate.path);
    let entries = std::fs::read_dir(&folder)
        .map_err(|error| Error::bad_input(format!("{}: {error}", candidate.path.display())))?;
    let mut found: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| finetuned_data::dataset_ending(name).is_some() && !names::is_ignored(name))
        .filter(|name| validation.as_deref().and_then(Path::file_name) != Some(std::ffi::OsStr::new(name)))
        .collect();
    found.sort();
    // validation.jsonl beside train.jsonl needs no setting.
    let (validation_files, train): (Vec<String>, Vec<String>) = found
        .into_iter()
        .partition(|name| validation.is_none() && matches!(names::stem(name), "validation" | "valid" | "val" | "dev"));
    match (train.as_slice(), validation_files.as_slice()) {
        ([data], []) => Ok((named("data", data)?, validation)),
        ([data], [rows]) => Ok((named("data", data)?, Some(named("validation", rows)?))),
        ([], _) => Err(Error::bad_input(format!("{}: the folder holds no dataset (.jsonl or .json)", file.name))),
        _ => {
            let all = train.iter().chain(&validation_files).cloned().collect::<Vec<_>>().join(", ");
            let message = format!("{}: the folder holds {all}", file.name);
            Err(Error::bad_input(message).remedy("say which with `data` and `validation`"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox::listing::list;

    fn inbox(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (file, content) in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        dir
    }

    fn only(dir: &tempfile::TempDir, defaults: &str) -> Result<Effective> {
        let listing = list(dir.path()).unwrap();
        assert_eq!(listing.candidates.len(), 1, "{listing:?}");
        effective(dir.path(), &listing.candidates[0], &defaults.parse().unwrap())
    }

    #[test]
    fn the_sidecar_wins_over_the_folder_over_the_defaults() {
        let dir = inbox(&[
            ("team/recipe.toml", "[train]\nepochs = 2\nbatch_size = 4\n"),
            ("team/a.jsonl", "x"),
            ("team/a.toml", "[train]\nepochs = 3\n"),
        ]);
        let recipe = only(&dir, "[train]\nepochs = 1\nbatch_size = 2\nsequence_length = 64\n").unwrap().recipe;
        assert_eq!((recipe.train.epochs, recipe.train.batch_size, recipe.train.sequence_length), (3.0, 4, 64));
    }

    #[test]
    fn a_mistake_names_the_file_and_line() {
        let dir = inbox(&[("a.jsonl", "x"), ("a.toml", "# my recipe\n[train]\nepocs = 3\n")]);
        let error = only(&dir, "").unwrap_err().to_string();
        assert!(error.starts_with("a.toml:3: "), "{error}");
        assert!(error.contains("train.epochs"), "{error}");
        let dir = inbox(&[("set/dataset.toml", "[recipe.train]\nepocs = 3\n"), ("set/a.jsonl", "x")]);
        let error = only(&dir, "").unwrap_err().to_string();
        assert!(error.starts_with("set/dataset.toml:2: "), "{error}");
    }

    #[test]
    fn a_folder_finds_its_files() {
        let dir = inbox(&[("set/dataset.toml", ""), ("set/train.jsonl", "x"), ("set/validation.jsonl", "x")]);
        let found = only(&dir, "").unwrap();
        assert_eq!(found.data, Path::new("set/train.jsonl"));
        assert_eq!(found.validation.unwrap(), Path::new("set/validation.jsonl"));
        let dir = inbox(&[("set/dataset.toml", ""), ("set/a.jsonl", "x"), ("set/b.jsonl", "x")]);
        assert!(only(&dir, "").unwrap_err().to_string().contains("a.jsonl, b.jsonl"));
        let dir = inbox(&[
            ("set/dataset.toml", "data = \"b.jsonl\"\nvalidation = \"a.jsonl\"\n"),
            ("set/a.jsonl", "x"),
            ("set/b.jsonl", "x"),
        ]);
        assert_eq!(only(&dir, "").unwrap().data, Path::new("set/b.jsonl"));
    }

    #[test]
    fn nothing_leads_out_of_the_folder() {
        for name in ["../b.jsonl", "/etc/passwd", "sub/b.jsonl", ""] {
            let dir =
                inbox(&[("b.txt", "x"), ("set/dataset.toml", &format!("data = \"{name}\"\n")), ("set/a.jsonl", "x")]);
            assert!(only(&dir, "").unwrap_err().to_string().contains("set/dataset.toml:1"), "{name}");
        }
        let dir = inbox(&[("a.jsonl", "x"), ("a.toml", "base = \"https://example.org/m\"\n")]);
        assert!(only(&dir, "").unwrap_err().to_string().starts_with("a.toml:1: "));
    }

    #[test]
    fn the_key_is_of_the_choices_not_of_their_order() {
        let recipe = |text: &str| Recipe::from_table(&text.parse().unwrap()).unwrap();
        let a = key("00", None, None, &recipe("[optimizer]\nname = \"adamw\"\nbeta1 = 0.8\nbeta2 = 0.9\n"), &[]);
        let b = key("00", None, None, &recipe("[optimizer]\nbeta2 = 0.9\nbeta1 = 0.8\nname = \"adamw\"\n"), &[]);
        assert_eq!(a, b);
        assert_ne!(a, key("01", None, None, &recipe("[optimizer]\nbeta1 = 0.8\nbeta2 = 0.9\n"), &[]));
        assert_ne!(a, key("00", None, None, &recipe(""), &[]));
        assert_ne!(key("00", None, None, &recipe(""), &[]), key("00", Some("1"), None, &recipe(""), &[]));
    }

    #[test]
    fn a_plugins_problem_names_the_line_that_set_the_key() {
        let dir = inbox(&[("a.jsonl", "x"), ("a.toml", "# mine\n[loss]\nname = \"dpo\"\nbata = 1.0\n")]);
        let effective = only(&dir, "[optimizer]\nname = \"lionn\"\n").unwrap();
        let problem =
            |key: &str| Problem { key: key.into(), message: "no".into(), kind: finetuned_engine::ErrorKind::BadInput };
        assert_eq!(effective.placed(problem("loss.bata")).to_string(), "a.toml:4: no");
        // Set in finetuned.toml: there is no file of the inbox to name.
        let placed = effective.placed(problem("optimizer.name")).to_string();
        assert_eq!(placed, "no (after installing a plugin: touch a.jsonl)");
        let dir = inbox(&[("set/dataset.toml", "[recipe]\nloss = \"dop\"\n"), ("set/a.jsonl", "x")]);
        let effective = only(&dir, "").unwrap();
        assert!(effective.placed(problem("loss.name")).to_string().starts_with("set/dataset.toml:2: no"));
    }
}
