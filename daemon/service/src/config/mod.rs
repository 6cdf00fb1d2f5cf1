//! The daemon's configuration: flag over variable over file over default.

pub mod keys;
mod layers;
mod lines;
mod schema;
mod settings;
mod template;

use std::path::{Path, PathBuf};

use finetuned_engine::keys::lookup;
use finetuned_engine::recipe::{Recipe, RecipeError};

pub use keys::{InboxConfig, PluginsConfig, WorkersConfig};
pub use layers::{Origin, Sources};
pub use lines::TomlFile;
pub use schema::schema;
pub use settings::{After, DeviceName, LogLevel, absolute};
pub use template::template;

use keys::{ControlConfig, LogConfig, ModelsConfig, StateConfig};
use layers::Layers;
use settings::{Places, Setting, Wrong};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    pub state_dir: PathBuf,
    pub inbox: InboxConfig,
    pub models_dir: PathBuf,
    pub socket: PathBuf,
    pub workers: WorkersConfig,
    pub plugins: PluginsConfig,
    pub log_level: LogLevel,
    /// The lowest layer of every job's recipe.
    pub recipe: toml::Table,
    pub warnings: Vec<String>,
    /// Key, value as TOML, origin: what `config show` prints.
    pub shown: Vec<(String, String, Origin)>,
}

/// Everything that is wrong with a configuration, one problem a line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

impl Config {
    /// Reads all layers.
    ///
    /// # Errors
    /// Every unknown key, wrong type and impossible value, each with its file
    /// and line or its variable or flag.
    pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
        let mut layers = Layers::collect(sources);
        let problems = std::mem::take(&mut layers.problems);
        let places = Places { home: sources.home.clone(), base: sources.current_dir.clone() };
        let mut reader = Reader { layers: &layers, places, problems };
        match reader.config() {
            Some(config) if reader.problems.is_empty() => Ok(config),
            _ => Err(ConfigError(reader.problems)),
        }
    }

    pub fn database(&self) -> PathBuf {
        self.state_dir.join("finetuned.db")
    }

    pub fn jobs_dir(&self) -> PathBuf {
        self.state_dir.join("jobs")
    }

    pub fn adapters_dir(&self) -> PathBuf {
        self.state_dir.join("adapters")
    }

    /// Plugin libraries by hash, as workers load them.
    pub fn plugin_copies(&self) -> PathBuf {
        self.state_dir.join("plugin-copies")
    }

    pub fn datasets_dir(&self) -> PathBuf {
        self.state_dir.join("datasets")
    }
}

/// Says a recipe error as `file:line: …`, with the place looked up in `file`
/// under `prefix` (`recipe.` in finetuned.toml and dataset.toml, nothing in a
/// recipe.toml).
pub fn place_recipe_error(error: &RecipeError, file: &TomlFile, prefix: &str) -> String {
    match error {
        RecipeError::UnknownKey { key, .. } | RecipeError::BadValue { key, .. } => {
            format!("{}: {error}", file.place(&format!("{prefix}{key}")))
        }
        RecipeError::BadFile { .. } => error.to_string(),
    }
}

/// Whether `inner` is `outer` or lies in it, by path alone.
pub fn lies_in(inner: &Path, outer: &Path) -> bool {
    inner.starts_with(outer)
}

/// Gives the merged layers types, and tells every mistake with its origin.
struct Reader<'a> {
    layers: &'a Layers,
    places: Places,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn config(&mut self) -> Option<Config> {
        if let Some(file) = &self.layers.file {
            self.places.base = absolute(file.parent().unwrap_or(Path::new("")), &self.places.base);
        }
        let state = StateConfig::read(self);
        if let Some(state) = &state {
            self.places.base.clone_from(&state.state_dir);
        }
        let inbox = InboxConfig::read(self);
        let models = ModelsConfig::read(self);
        let control = ControlConfig::read(self);
        let workers = WorkersConfig::read(self);
        let plugins = PluginsConfig::read(self);
        let log = LogConfig::read(self);
        let recipe = self.recipe();
        let workers = workers?;
        let config = Config {
            file: self.layers.file.clone(),
            state_dir: state?.state_dir,
            inbox: inbox?,
            models_dir: models?.dir,
            socket: control?.socket,
            workers: WorkersConfig { parallel: workers.parallel.max(1), ..workers },
            plugins: plugins?,
            log_level: log?.level,
            recipe,
            warnings: self.layers.warnings.clone(),
            shown: self.shown(),
        };
        self.refuse_output_in_inbox(&config);
        Some(config)
    }

    /// One key's value; `None` if it is wrong, which is told.
    fn take<T: Setting>(&mut self, section: &str, name: &str) -> Option<T> {
        let path = if section.is_empty() { name.to_string() } else { format!("{section}.{name}") };
        let key = keys::find(&path)?;
        let (value, origin) = self.layers.values.get(path.as_str())?;
        match T::read(value, key.range, &self.places) {
            Ok(value) => return Some(value),
            Err(Wrong::Expected(words)) => {
                self.problems.push(format!("{origin}: `{path}` must be {words}, not {value}"));
            }
            Err(Wrong::Reason(words)) => self.problems.push(format!("{origin}: `{path}`: {words}")),
        }
        None
    }

    /// The outputs of a run would be taken for datasets.
    fn refuse_output_in_inbox(&mut self, config: &Config) {
        let outputs = [("state_dir", config.state_dir.clone()), ("models.dir", config.models_dir.clone())];
        for inbox in &config.inbox.paths {
            for (key, output) in &outputs {
                if lies_in(output, inbox) {
                    let origin = &self.layers.values["inbox.paths"].1;
                    self.problems.push(format!(
                        "{origin}: the inbox {} holds `{key}` ({}), so what is written would be read as datasets; choose folders beside each other",
                        inbox.display(),
                        output.display()
                    ));
                }
            }
            for folder in [config.jobs_dir(), config.adapters_dir(), config.datasets_dir()] {
                if lies_in(inbox, &folder) || lies_in(&folder, inbox) {
                    let origin = &self.layers.values["inbox.paths"].1;
                    self.problems.push(format!(
                        "{origin}: the inbox {} overlaps with {}, where the daemon writes; choose folders beside each other",
                        inbox.display(),
                        folder.display()
                    ));
                }
            }
        }
    }

    fn recipe(&mut self) -> toml::Table {
        if let Err(error) = Recipe::from_table(&self.layers.recipe) {
            let key = match &error {
                RecipeError::UnknownKey { key, .. } | RecipeError::BadValue { key, .. } => key.as_str(),
                RecipeError::BadFile { .. } => "",
            };
            let origin = self.layers.recipe_origins.get(key).map_or_else(
                || self.layers.file.as_ref().map_or("recipe".to_string(), |file| file.display().to_string()),
                ToString::to_string,
            );
            self.problems.push(format!("{origin}: in [recipe]: {error}"));
        }
        self.layers.recipe.clone()
    }

    fn shown(&self) -> Vec<(String, String, Origin)> {
        let mut shown: Vec<_> = keys::KEYS
            .iter()
            .map(|key| {
                let (value, origin) = &self.layers.values[key.path.as_str()];
                (key.path.clone(), value.to_string(), origin.clone())
            })
            .collect();
        for key in keys::RECIPE_KEYS.iter() {
            let path = format!("recipe.{}", key.path);
            match lookup(&self.layers.recipe, &key.path) {
                Some(value) => {
                    let origin = self.layers.recipe_origins.get(&key.path).cloned().unwrap_or(Origin::Default);
                    shown.push((path, value.to_string(), origin));
                }
                None => shown.push((path, key.default_words().to_string(), Origin::Default)),
            }
        }
        shown
    }
}

#[cfg(test)]
mod tests;
