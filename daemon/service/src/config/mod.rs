//! The daemon's configuration: flag over variable over file over default.

pub mod keys;
mod layers;
mod lines;

use std::path::{Path, PathBuf};
use std::time::Duration;

use finetuned_engine::recipe::{self, Recipe, RecipeError};

pub use layers::{Origin, Sources};
pub use lines::TomlFile;

use keys::Kind;
use layers::Layers;

/// What happens to a dataset whose job has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    Leave,
    Move,
}

#[derive(Debug, Clone, PartialEq)]
pub struct InboxConfig {
    pub paths: Vec<PathBuf>,
    pub scan_every: Duration,
    pub settle: Duration,
    pub settle_network: Duration,
    pub incomplete_after: Duration,
    pub after: After,
    pub snapshot_limit: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct WorkersConfig {
    pub parallel: usize,
    pub device: String,
    /// `None`: all cores.
    pub threads: Option<usize>,
    /// `None`: no limit.
    pub memory: Option<u64>,
    pub heartbeat_timeout: Duration,
    pub stall_timeout: Duration,
    pub stop_timeout: Duration,
}

/// Limits of plugin libraries.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginsConfig {
    pub call_timeout: Duration,
    /// `None`: no limit.
    pub call_memory: Option<u64>,
    pub load_timeout: Duration,
}

/// The whole configuration; every field is one key of [`keys::KEYS`].
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
    pub log_level: String,
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
        let mut problems = std::mem::take(&mut layers.problems);
        let config = Typed { layers: &layers, sources, problems: &mut problems }.config();
        if problems.is_empty() { Ok(config) } else { Err(ConfigError(problems)) }
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

struct Typed<'a> {
    layers: &'a Layers,
    sources: &'a Sources,
    problems: &'a mut Vec<String>,
}

impl Typed<'_> {
    fn config(&mut self) -> Config {
        let base = match &self.layers.file {
            Some(file) => absolute(file.parent().unwrap_or(Path::new("")), &self.sources.current_dir),
            None => self.sources.current_dir.clone(),
        };
        let state_dir = self.path("state_dir", &base);
        let config = Config {
            file: self.layers.file.clone(),
            inbox: InboxConfig {
                paths: self.paths("inbox.paths", &state_dir),
                scan_every: self.duration("inbox.scan_every", Duration::from_millis(100)),
                settle: self.duration("inbox.settle", Duration::ZERO),
                settle_network: self.duration("inbox.settle_network", Duration::ZERO),
                incomplete_after: self.duration("inbox.incomplete_after", Duration::ZERO),
                after: if self.text("inbox.after") == "move" { After::Move } else { After::Leave },
                snapshot_limit: match self.bytes("inbox.snapshot_limit") {
                    0 => u64::MAX,
                    limit => limit,
                },
            },
            models_dir: self.path("models.dir", &state_dir),
            socket: self.path("control.socket", &state_dir),
            workers: WorkersConfig {
                parallel: self.count("workers.parallel").max(1),
                device: self.device("workers.device"),
                threads: Some(self.count("workers.threads")).filter(|&n| n > 0),
                memory: Some(self.bytes("workers.memory")).filter(|&n| n > 0),
                heartbeat_timeout: self.duration("workers.heartbeat_timeout", Duration::from_secs(1)),
                stall_timeout: self.duration("workers.stall_timeout", Duration::from_secs(1)),
                stop_timeout: self.duration("workers.stop_timeout", Duration::from_millis(100)),
            },
            plugins: PluginsConfig {
                call_timeout: self.duration("plugins.call_timeout", Duration::from_millis(100)),
                call_memory: Some(self.bytes("plugins.call_memory")).filter(|&n| n > 0),
                load_timeout: self.duration("plugins.load_timeout", Duration::from_millis(100)),
            },
            log_level: self.text("log.level"),
            recipe: self.recipe(),
            warnings: self.layers.warnings.clone(),
            shown: self.shown(),
            state_dir,
        };
        self.refuse_output_in_inbox(&config);
        config
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
                let (value, origin) = &self.layers.values[key.path];
                (key.path.to_string(), value.to_string(), origin.clone())
            })
            .collect();
        for key in recipe::KEYS {
            let path = format!("recipe.{}", key.path);
            match lookup(&self.layers.recipe, key.path) {
                Some(value) => {
                    let origin = self.layers.recipe_origins.get(key.path).cloned().unwrap_or(Origin::Default);
                    shown.push((path, value.to_string(), origin));
                }
                None => shown.push((path, key.default.to_string(), Origin::Default)),
            }
        }
        shown
    }

    fn wrong(&mut self, key: &str, expected: &str) {
        let (value, origin) = &self.layers.values[key];
        self.problems.push(format!("{origin}: `{key}` must be {expected}, not {value}"));
    }

    fn device(&mut self, key: &str) -> String {
        let words = self.text(key);
        if let Err(error) = finetuned_engine::devices::check_words(&words) {
            let origin = &self.layers.values[key].1;
            self.problems.push(format!("{origin}: `{key}`: {error}"));
        }
        words
    }

    fn text(&mut self, key: &str) -> String {
        let value = &self.layers.values[key].0;
        let Some(text) = value.as_str() else {
            self.wrong(key, "a text");
            return String::new();
        };
        if let Some(Kind::Word(words)) = keys::find(key).map(|key| key.kind)
            && !words.contains(&text)
        {
            let hint = keys::nearest(text, words.iter().copied()).map(|near| format!(" (did you mean \"{near}\"?)"));
            self.wrong(key, &format!("one of {}{}", words.join(", "), hint.unwrap_or_default()));
        }
        text.to_string()
    }

    fn path(&mut self, key: &str, base: &Path) -> PathBuf {
        let text = self.text(key);
        self.expand(&text, base)
    }

    fn expand(&self, text: &str, base: &Path) -> PathBuf {
        let path = match (text.strip_prefix("~/"), &self.sources.home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(text),
        };
        absolute(&path, base)
    }

    fn paths(&mut self, key: &str, base: &Path) -> Vec<PathBuf> {
        let texts: Option<Vec<String>> = match &self.layers.values[key].0 {
            toml::Value::String(one) => Some(vec![one.clone()]),
            toml::Value::Array(many) => many.iter().map(|v| v.as_str().map(str::to_string)).collect(),
            _ => None,
        };
        match texts {
            Some(texts) => texts.iter().map(|text| self.expand(text, base)).collect(),
            None => {
                self.wrong(key, "a list of paths");
                Vec::new()
            }
        }
    }

    fn duration(&mut self, key: &str, least: Duration) -> Duration {
        let parsed = self.layers.values[key].0.as_str().and_then(|text| humantime::parse_duration(text).ok());
        match parsed {
            Some(duration) if duration >= least => duration,
            Some(_) => {
                self.wrong(key, &format!("at least {}", humantime::format_duration(least)));
                least
            }
            None => {
                self.wrong(key, "a duration such as \"30s\", \"250ms\" or \"10m\"");
                least
            }
        }
    }

    fn bytes(&mut self, key: &str) -> u64 {
        let parsed = match &self.layers.values[key].0 {
            toml::Value::Integer(n) => u64::try_from(*n).ok(),
            toml::Value::String(text) => text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64()),
            _ => None,
        };
        parsed.unwrap_or_else(|| {
            self.wrong(key, "a size such as \"8GiB\" or a number of bytes");
            0
        })
    }

    fn count(&mut self, key: &str) -> usize {
        let parsed = self.layers.values[key].0.as_integer().and_then(|n| usize::try_from(n).ok());
        parsed.unwrap_or_else(|| {
            self.wrong(key, "a whole number, not negative");
            0
        })
    }
}

fn lookup<'a>(table: &'a toml::Table, path: &str) -> Option<&'a toml::Value> {
    match path.split_once('.') {
        None => table.get(path),
        Some((head, rest)) => lookup(table.get(head)?.as_table()?, rest),
    }
}

/// `path` under `base`, without `.` and `..` steps, so that two names of one
/// folder compare equal.
pub fn absolute(path: &Path, base: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in base.join(path).components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    clean
}

#[cfg(test)]
mod tests;
