//! The layers of the configuration and where each value came from:
//! default < file < variable < flag.

use std::collections::BTreeMap;
use std::path::PathBuf;

use finetuned_engine::keys::Kind;
use finetuned_engine::recipe;
use finetuned_plugin_api::suggest::nearest;

use super::keys;
use super::lines::TomlFile;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// `finetuned.toml:12`.
    File(String),
    Variable(String),
    Flag(String),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(place) => f.write_str(place),
            Origin::Variable(name) => f.write_str(name),
            Origin::Flag(flag) => f.write_str(flag),
        }
    }
}

/// What the process was started with. Tests build their own.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// Key, value as TOML text or plain text, and the flag as typed.
    pub flags: Vec<(String, String, String)>,
    pub variables: Vec<(String, String)>,
    pub home: Option<PathBuf>,
    pub current_dir: PathBuf,
}

impl Sources {
    /// Of this process.
    pub fn of_process(config: Option<PathBuf>, flags: Vec<(String, String, String)>) -> Sources {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("FINETUNED_"))
            .collect();
        Sources {
            config,
            flags,
            variables,
            home: std::env::home_dir(),
            current_dir: std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")),
        }
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The file that is read: `--config`, `FINETUNED_CONFIG`, else the first
    /// of finetuned.toml here, in the user's and in the system's folder.
    pub fn file(&self) -> Option<PathBuf> {
        if let Some(path) = &self.config {
            return Some(path.clone());
        }
        if let Some(path) = self.variable("FINETUNED_CONFIG") {
            return Some(PathBuf::from(path));
        }
        let mut places = vec![self.current_dir.join("finetuned.toml")];
        places.extend(self.home.iter().map(|home| home.join(".config/finetuned/finetuned.toml")));
        places.push(PathBuf::from("/etc/finetuned/finetuned.toml"));
        places.into_iter().find(|path| path.is_file())
    }
}

/// The merged values, before they are given types.
#[derive(Debug, Default)]
pub struct Layers {
    pub values: BTreeMap<&'static str, (toml::Value, Origin)>,
    /// The merged `[recipe]` table.
    pub recipe: toml::Table,
    /// Dotted recipe key to origin, for the keys that were set.
    pub recipe_origins: BTreeMap<String, Origin>,
    pub file: Option<PathBuf>,
    pub problems: Vec<String>,
    /// Said, but no error.
    pub warnings: Vec<String>,
}

/// Variables that are no keys.
const OTHER_VARIABLES: &[&str] = &["FINETUNED_CONFIG", finetuned_plugin_api::abi::discover::PATH_VARIABLE];

impl Layers {
    /// Merges all layers; what is wrong is collected, so that one check shows
    /// every mistake.
    pub fn collect(sources: &Sources) -> Layers {
        let mut layers = Layers::default();
        for key in keys::KEYS.iter() {
            let value = parse_text(key.kind, key.default_words());
            layers.values.insert(&key.path, (value, Origin::Default));
        }
        layers.file = sources.file();
        if let Some(path) = &layers.file.clone() {
            match TomlFile::read(path) {
                Ok(file) => layers.add_file(&file),
                Err(error) => layers.problems.push(format!("{error:#}")),
            }
        }
        layers.add_variables(sources);
        for (key, value, flag) in &sources.flags {
            layers.set(key, value, Origin::Flag(flag.clone()));
        }
        layers
    }

    fn add_file(&mut self, file: &TomlFile) {
        self.add_table(file, "", &file.table);
    }

    fn add_table(&mut self, file: &TomlFile, prefix: &str, table: &toml::Table) {
        for (name, value) in table {
            let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            let origin = Origin::File(file.place(&path));
            if path == "recipe" {
                let toml::Value::Table(recipe) = value else {
                    self.problems.push(format!("{}: `recipe` is a table", file.place(&path)));
                    continue;
                };
                recipe::merge(&mut self.recipe, recipe);
                self.note_recipe_origins(file, "", recipe);
                continue;
            }
            if let Some(key) = keys::find(&path) {
                self.values.insert(&key.path, (value.clone(), origin));
                continue;
            }
            let is_section = keys::KEYS.iter().any(|key| key.path.starts_with(&format!("{path}.")));
            match value {
                toml::Value::Table(inner) if is_section => self.add_table(file, &path, inner),
                _ => self.problems.push(format!("{origin}: {}", unknown(&path))),
            }
        }
    }

    fn note_recipe_origins(&mut self, file: &TomlFile, prefix: &str, table: &toml::Table) {
        for (name, value) in table {
            let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            match value {
                toml::Value::Table(inner) => self.note_recipe_origins(file, &path, inner),
                _ => {
                    let place = file.place(&format!("recipe.{path}"));
                    self.recipe_origins.insert(path, Origin::File(place));
                }
            }
        }
    }

    fn add_variables(&mut self, sources: &Sources) {
        for (name, value) in &sources.variables {
            if OTHER_VARIABLES.contains(&name.as_str()) {
                continue;
            }
            let origin = Origin::Variable(name.clone());
            if let Some(key) = keys::KEYS.iter().find(|key| keys::variable(&key.path) == *name) {
                self.set(&key.path, value, origin);
                continue;
            }
            let recipe_key =
                keys::RECIPE_KEYS.iter().find(|key| keys::variable(&format!("recipe.{}", key.path)) == *name);
            if let Some(key) = recipe_key {
                self.set(&format!("recipe.{}", key.path), value, origin);
                continue;
            }
            let known: Vec<String> = keys::KEYS
                .iter()
                .map(|key| keys::variable(&key.path))
                .chain(keys::RECIPE_KEYS.iter().map(|key| keys::variable(&format!("recipe.{}", key.path))))
                .collect();
            let hint = nearest(name, known.iter().map(String::as_str))
                .map(|near| format!("; did you mean {near}?"))
                .unwrap_or_default();
            // A variable may belong to another tool or a later version, so it
            // does not stop the daemon.
            self.warnings.push(format!("the variable {name} is not known{hint}"));
        }
    }

    fn set(&mut self, path: &str, text: &str, origin: Origin) {
        if let Some(recipe_path) = path.strip_prefix("recipe.") {
            match recipe::set(&mut self.recipe, &format!("{recipe_path}={text}")) {
                Ok(()) => {
                    self.recipe_origins.insert(recipe_path.to_string(), origin);
                }
                Err(error) => self.problems.push(format!("{origin}: {error}")),
            }
            return;
        }
        match keys::find(path) {
            Some(key) => {
                self.values.insert(&key.path, (parse_text(key.kind, text), origin));
            }
            None => self.problems.push(format!("{origin}: {}", unknown(path))),
        }
    }
}

fn unknown(path: &str) -> String {
    let recipe_names: Vec<String> = keys::RECIPE_KEYS.iter().map(|key| format!("recipe.{}", key.path)).collect();
    let known = keys::KEYS.iter().map(|key| key.path.as_str()).chain(recipe_names.iter().map(String::as_str));
    let hint = nearest(path, known).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    format!("unknown key `{path}`{hint}")
}

/// Text from a variable or a flag: TOML where it is TOML, else the text.
fn parse_text(kind: Kind, text: &str) -> toml::Value {
    if let Ok(mut table) = format!("value = {text}").parse::<toml::Table>()
        && let Some(value) = table.remove("value")
    {
        return value;
    }
    match kind {
        Kind::Paths => toml::Value::Array(
            text.split(':').filter(|s| !s.is_empty()).map(|s| toml::Value::String(s.into())).collect(),
        ),
        _ => toml::Value::String(text.to_string()),
    }
}
