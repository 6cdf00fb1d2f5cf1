//! Plugin libraries: which there are, which a recipe asks for, and the copies
//! that workers load. The daemon reads the bytes of these files and no more: what
//! a library offers is asked of a child process ([`child`]), which may die of it.

pub mod child;
mod describe;
mod quarantine;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use finetuned_engine::{Chosen, ErrorKind, PluginLibrary, Recipe};
use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::abi::discover;
use finetuned_plugin_api::error::did_you_mean;
use finetuned_plugin_api::registry::{Descriptor, Kind, Registry};
use serde::{Deserialize, Serialize};

pub use describe::{Describer, hash_of};
pub use quarantine::{Crashed, Crashes, QUARANTINE_AFTER, quarantine};

use crate::config::Config;
use crate::error::{Context, Error, Result};
use crate::filesystem::display;

/// In a job's folder: the call of a plugin that its worker was in.
pub const CALL_FILE: &str = "plugin-call";

/// Longest time of one check of the conformance kit.
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// The build of a plugin that a job is tied to, whatever happens to the file that it
/// came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// Loss, optimizer or alignment method.
    pub kind: Kind,
    /// As recipes name it.
    pub name: String,
    /// As it says itself.
    pub version: String,
    #[serde(flatten)]
    /// The file that it is loaded from.
    pub library: PluginLibrary,
}

/// Why a recipe's plugins cannot be had, and the key that is at fault.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// `loss.beta`.
    pub key: String,
    /// For people.
    pub message: String,
    /// Whether the recipe or the plugin is at fault.
    pub kind: ErrorKind,
}

impl Problem {
    /// A mistake of the recipe.
    fn of_recipe(key: String, message: String) -> Problem {
        Problem { key, message, kind: ErrorKind::BadInput }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Error {
        Error::new(problem.kind, problem.message)
    }
}

/// A plugin of a library.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// What it says of itself.
    pub descriptor: Descriptor,
    /// Why it cannot be used although its library can: its name is taken.
    pub refused: Option<String>,
}

/// A library file and what it offers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Library {
    /// As it was found.
    pub path: PathBuf,
    /// The copy that is loaded, if it could be made.
    pub copy: Option<PluginLibrary>,
    /// Its plugins.
    pub offers: Vec<Offer>,
    /// Why nothing of it can be used, in one line with the remedy.
    pub refused: Option<String>,
}

/// Finds libraries.
#[derive(Debug, Clone, PartialEq)]
pub struct Finder {
    /// Where libraries are looked for; the first folder counts first.
    pub folders: Vec<PathBuf>,
    /// Copies by hash, and what each offers.
    pub copies: PathBuf,
    /// Who asks a library what it offers.
    pub describer: Describer,
}

impl Finder {
    /// As the configuration says.
    pub fn of(config: &Config) -> Finder {
        Finder {
            folders: discover::folders(),
            copies: config.plugin_copies(),
            describer: Describer { timeout: config.plugins.load_timeout, memory_bytes: config.plugins.call_memory },
        }
    }

    /// Every library of the folders; of two plugins of one name the first
    /// counts.
    pub fn libraries(&self) -> Vec<Library> {
        let mut taken = built_in_names();
        let mut libraries = Vec::new();
        for found in discover::find(&self.folders) {
            let mut library = match found.refused {
                Some(error) => Library::refused(&found.path, error.to_string()),
                None => self.library(&found.path),
            };
            for offer in &mut library.offers {
                let (kind, name) = (offer.descriptor.kind, offer.descriptor.name.clone());
                match taken.iter().find(|(known, section, _)| *known == name && *section == section_of(kind)) {
                    Some((_, _, by)) => {
                        offer.refused = Some(format!("the name '{name}' is taken: it {by}; give the plugin another"));
                    }
                    None => taken.push((name, section_of(kind), format!("comes from {}", display(&found.path)))),
                }
            }
            libraries.push(library);
        }
        libraries
    }

    /// One file: copied, and described by a child process.
    pub fn library(&self, path: &Path) -> Library {
        let made = || -> Result<(PluginLibrary, Vec<Descriptor>)> {
            make_private(&self.copies)?;
            let kept = discover::keep(path, &self.copies)?;
            let copy = PluginLibrary { path: kept.path, sha256: kept.sha256, origin: path.to_path_buf() };
            let offers = self.describer.describe_cached(&copy)?;
            Ok((copy, offers))
        };
        match made() {
            Ok((copy, offers)) => {
                let offers = offers.into_iter().map(|descriptor| Offer { descriptor, refused: None }).collect();
                Library { path: path.to_path_buf(), copy: Some(copy), offers, refused: None }
            }
            Err(error) => Library::refused(path, error.to_string()),
        }
    }

    /// The builds of the plugins that a recipe names, its parameters checked.
    /// Built-in plugins are not pinned, and if all are built in, no file is looked at.
    ///
    /// # Errors
    /// An unknown name or parameter with the nearest known one, a value out of
    /// its range, a library that is refused or in quarantine.
    pub fn resolve(&self, recipe: &Recipe, crashes: &Crashes) -> std::result::Result<Vec<Pinned>, Problem> {
        let built_in = Registry::new(finetuned_standard::BUILT_IN).map_err(|error| problem("loss", &error))?;
        let mut libraries = None;
        let mut pinned: Vec<Pinned> = Vec::new();
        for (section, chosen) in [("loss", &recipe.loss), ("optimizer", &recipe.optimizer)] {
            if has_name(&built_in, section, &chosen.name) {
                let made = match section {
                    "loss" => built_in.objective(&chosen.name, &chosen.parameters).map(|_| ()),
                    _ => built_in.optimizer(&chosen.name, &chosen.parameters).map(|_| ()),
                };
                made.map_err(|error| problem(section, &error))?;
                continue;
            }
            let libraries = libraries.get_or_insert_with(|| self.libraries());
            pinned.push(pin(section, chosen, &built_in, libraries, crashes)?);
        }
        Ok(pinned)
    }
}

impl Library {
    fn refused(path: &Path, why: String) -> Library {
        Library { path: path.to_path_buf(), copy: None, offers: Vec::new(), refused: Some(why) }
    }
}

/// The libraries of these plugins, each once.
pub fn libraries_of(pinned: &[Pinned]) -> Vec<PluginLibrary> {
    let mut libraries: Vec<PluginLibrary> = Vec::new();
    for plugin in pinned {
        if !libraries.iter().any(|known| known.sha256 == plugin.library.sha256) {
            libraries.push(plugin.library.clone());
        }
    }
    libraries
}

/// A copy must be, to the byte, what it was when the job was claimed: the file
/// whose owner and permissions were checked. For the process that loads it.
///
/// # Errors
/// It is gone or changed.
pub fn verify(library: &PluginLibrary) -> Result<()> {
    let gone = || {
        format!(
            "the copy of the plugin {} cannot be read; `finetune retry` takes the present file",
            display(&library.origin)
        )
    };
    let mut file = std::fs::File::open(&library.path).with_context(gone)?;
    let sha256 = crate::filesystem::sha256_of(&mut file).with_context(gone)?;
    if sha256 == library.sha256 {
        return Ok(());
    }
    let message = format!("the copy {} of the plugin {} has changed", library.path.display(), display(&library.origin));
    Err(Error::plugin(message).remedy("remove it, then `finetune retry`"))
}

fn make_private(folder: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make {}", folder.display()))
}

/// The table of a recipe that names plugins of a kind.
fn section_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Loss | Kind::Alignment => "loss",
        Kind::Optimizer => "optimizer",
    }
}

fn built_in_names() -> Vec<(String, &'static str, String)> {
    let descriptors = finetuned_standard::BUILT_IN.iter().map(|plugin| (plugin.descriptor)());
    descriptors.map(|d| (d.name, section_of(d.kind), "is built in".to_string())).collect()
}

fn has_name(registry: &Registry, section: &str, name: &str) -> bool {
    registry.entries().iter().any(|e| e.descriptor.name == name && section_of(e.descriptor.kind) == section)
}

fn problem(section: &str, error: &PluginError) -> Problem {
    let key = match error {
        PluginError::UnknownParameter { key, .. } | PluginError::Parameter { key, .. } => key.as_str(),
        _ => "name",
    };
    Problem::of_recipe(format!("{section}.{key}"), error.to_string())
}

fn pin(
    section: &str,
    chosen: &Chosen,
    built_in: &Registry,
    libraries: &[Library],
    crashes: &Crashes,
) -> std::result::Result<Pinned, Problem> {
    let fits = |descriptor: &Descriptor| section_of(descriptor.kind) == section;
    let offers = libraries.iter().flat_map(|library| {
        let usable = library.offers.iter().filter(|offer| offer.refused.is_none() && fits(&offer.descriptor));
        usable.filter_map(|offer| Some((library.copy.as_ref()?, &offer.descriptor)))
    });
    let Some((copy, descriptor)) = offers.clone().find(|(_, descriptor)| descriptor.name == chosen.name) else {
        let known = built_in.entries().iter().map(|entry| &entry.descriptor).filter(|d| fits(d));
        let names = known.chain(offers.map(|(_, descriptor)| descriptor)).map(|d| d.name.as_str());
        return Err(unknown(section, &chosen.name, names, libraries));
    };
    if let Some(message) = quarantine(crashes, &chosen.name, copy) {
        return Err(Problem { key: format!("{section}.name"), message, kind: ErrorKind::Plugin });
    }
    descriptor.check(&chosen.parameters).map_err(|error| problem(section, &error))?;
    Ok(Pinned {
        kind: descriptor.kind,
        name: descriptor.name.clone(),
        version: descriptor.version.clone(),
        library: copy.clone(),
    })
}

/// A refused file may well be the one that has the name.
fn unknown<'a>(section: &str, name: &str, names: impl IntoIterator<Item = &'a str>, libraries: &[Library]) -> Problem {
    let near = did_you_mean(name, names);
    let mut message = match near.is_empty() {
        true => format!("there is no {section} named '{name}'; `finetune plugin list` shows them"),
        false => format!("there is no {section} named '{name}'{near}"),
    };
    for refused in libraries.iter().filter_map(|library| library.refused.as_ref()) {
        message += &format!("; {refused}");
    }
    Problem::of_recipe(format!("{section}.name"), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finder(folder: &Path) -> Finder {
        Finder {
            folders: vec![folder.join("plugins")],
            copies: folder.join("copies"),
            describer: Describer { timeout: std::time::Duration::from_secs(5), memory_bytes: None },
        }
    }

    fn resolve(recipe: &str) -> std::result::Result<Vec<Pinned>, Problem> {
        let folder = tempfile::tempdir().unwrap();
        let recipe = Recipe::from_table(&recipe.parse().unwrap()).unwrap();
        finder(folder.path()).resolve(&recipe, &Crashes::new())
    }

    #[test]
    fn what_is_built_in_is_checked_without_a_library() {
        assert_eq!(resolve("loss = \"dpo\"\noptimizer = \"lion\"").unwrap(), []);
        let problem = resolve("[loss]\nname = \"dpo\"\nbata = 1.0").unwrap_err();
        assert_eq!(problem.key, "loss.bata");
        assert_eq!(problem.message, "'dpo' has no parameter 'bata' (did you mean 'beta'?)");
        let problem = resolve("[optimizer]\nname = \"lion\"\nbeta1 = 2.0").unwrap_err();
        assert_eq!(problem.key, "optimizer.beta1");
        assert!(problem.message.contains("expected a number"), "{}", problem.message);
        // What only the method itself knows is found as well.
        let problem = resolve("[loss]\nname = \"dpo\"\nvariant = \"hinge\"\nlabel_smoothing = 0.1").unwrap_err();
        assert_eq!(problem.key, "loss.label_smoothing");
    }

    #[test]
    fn an_unknown_name_is_told_with_the_nearest_or_the_way_to_see_all() {
        assert_eq!(
            resolve("loss = \"dop\"").unwrap_err().message,
            "there is no loss named 'dop' (did you mean 'dpo'?)"
        );
        let problem = resolve("optimizer = \"zebra\"").unwrap_err();
        assert_eq!(problem.key, "optimizer.name");
        assert!(problem.message.ends_with("`finetune plugin list` shows them"), "{}", problem.message);
    }

    #[test]
    fn a_library_that_others_may_write_is_named_where_its_plugin_is_missed() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let plugins = folder.path().join("plugins");
        std::fs::create_dir(&plugins).unwrap();
        let file = plugins.join(format!("libmine{}", std::env::consts::DLL_SUFFIX));
        std::fs::write(&file, "x").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
        let recipe = Recipe::from_table(&"loss = \"mine\"".parse().unwrap()).unwrap();
        let problem = finder(folder.path()).resolve(&recipe, &Crashes::new()).unwrap_err();
        assert!(problem.message.contains("chmod go-w"), "{}", problem.message);
    }
}
