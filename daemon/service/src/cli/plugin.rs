//! `finetune plugin`: see, check, test and begin plugins. Libraries are loaded
//! by child processes only.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use finetuned_plugin_api::conformance;
use finetuned_plugin_api::error::did_you_mean;
use finetuned_plugin_api::parameters::{Parameter, ParameterType};
use finetuned_plugin_api::registry::{Descriptor, Kind};

use crate::config::Config;
use crate::error::Error;
use crate::filesystem::display;
use crate::plugins::{CHECK_TIMEOUT, Crashes, Describer, Finder, Library, hash_of, quarantine};
use crate::store::crashes_in;

use super::{Global, print, print_json};

#[derive(Subcommand)]
#[command(after_help = "\
Examples:
  finetune plugin list                       all there are: built in, installed, refused
  finetune plugin show dpo                   what can be set, and how a recipe says it
  finetune plugin new my-loss --kind loss    a folder that builds; then edit src/lib.rs and:
  cargo build --release --manifest-path my-loss/Cargo.toml
  finetune plugin test my-loss/target/release/libmy_loss.so
  install -D -m 644 my-loss/target/release/libmy_loss.so -t ~/.local/share/finetuned/plugins/

A plugin is found in the folders of FINETUNED_PLUGIN_PATH, in
~/.local/share/finetuned/plugins and in the system's finetuned/plugins. It is
refused where anybody but root and you could have written it. A recipe names it:
loss = \"my-loss\", or a table [loss] with the name and its parameters.")]
pub enum PluginCommand {
    /// Every plugin: kind, name, version, where it comes from; what is refused, and why
    List {
        #[arg(long)]
        json: bool,
    },
    /// One plugin: what it does, its parameters, how a recipe names it
    Show {
        name: String,
        #[arg(long)]
        json: bool,
    },
    /// Load a file in a child process and say what it offers, or why it is refused
    Check {
        file: PathBuf,
        #[arg(long)]
        json: bool,
    },
    /// Run the conformance kit, each check in a process of its own
    Test {
        /// A library's file, or the name of a plugin
        #[arg(value_name = "FILE|NAME")]
        what: String,
        #[arg(long)]
        json: bool,
    },
    /// Begin a plugin: a folder that builds and passes its tests as it is
    New(NewArgs),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  finetune plugin new my-loss --kind loss
  finetune plugin new my-optimizer --kind optimizer --dir ~/src/my-optimizer
The folder carries the library that plugins are written against, so that it builds
anywhere with a Rust toolchain.")]
pub struct NewArgs {
    /// As recipes will name it: lower-case letters, digits and '-'
    name: String,
    #[arg(long, value_enum)]
    kind: KindArg,
    /// Where to [default: a folder of the plugin's name, here]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindArg {
    /// A number from the statistics of the trained tokens
    Loss,
    /// An update rule
    Optimizer,
    /// A loss over preference data, with what data it needs
    Alignment,
}

impl From<KindArg> for Kind {
    fn from(arg: KindArg) -> Kind {
        match arg {
            KindArg::Loss => Kind::Loss,
            KindArg::Optimizer => Kind::Optimizer,
            KindArg::Alignment => Kind::Alignment,
        }
    }
}

pub fn run(command: &PluginCommand, global: &Global) -> anyhow::Result<ExitCode> {
    let done = |result: anyhow::Result<()>| result.map(|()| ExitCode::SUCCESS);
    match command {
        PluginCommand::List { json } => done(list(&Known::find(&global.load()?)?, *json)),
        PluginCommand::Show { name, json } => done(show(&Known::find(&global.load()?)?, name, *json)),
        PluginCommand::Check { file, json } => done(check(&Finder::of(&global.load()?).describer, file, *json)),
        PluginCommand::Test { what, json } => test(&global.load()?, what, *json),
        PluginCommand::New(args) => done(new(args)),
    }
}

/// All plugins, as the commands show them.
struct Known {
    plugins: Vec<Row>,
    /// Libraries that cannot be used at all.
    refused: Vec<Library>,
}

#[derive(serde::Serialize)]
struct Row {
    #[serde(flatten)]
    descriptor: Descriptor,
    /// The file; none if it is built in.
    file: Option<PathBuf>,
    sha256: Option<String>,
    /// Why it cannot be used.
    refused: Option<String>,
}

impl Known {
    fn find(config: &Config) -> anyhow::Result<Known> {
        let mut finder = Finder::of(config);
        // Whoever may not write the daemon's folder can look all the same.
        let elsewhere = tempfile::tempdir()?;
        if !is_writable(&config.state_dir) {
            finder.copies = elsewhere.path().to_path_buf();
        }
        // Nor may everybody read its database.
        let crashes = crashes_in(&config.database()).unwrap_or_else(|error| {
            eprintln!("finetune: what is in quarantine is not known: {error:#}");
            Crashes::new()
        });
        let built_in = finetuned_standard::BUILT_IN.iter().map(|plugin| Row {
            descriptor: (plugin.descriptor)(),
            file: None,
            sha256: None,
            refused: None,
        });
        let mut plugins: Vec<Row> = built_in.collect();
        let mut refused = Vec::new();
        for library in finder.libraries() {
            for offer in &library.offers {
                let jailed = library.copy.as_ref().and_then(|copy| quarantine(&crashes, &offer.descriptor.name, copy));
                plugins.push(Row {
                    descriptor: offer.descriptor.clone(),
                    file: Some(library.path.clone()),
                    sha256: library.copy.as_ref().map(|copy| copy.sha256.clone()),
                    refused: offer.refused.clone().or(jailed),
                });
            }
            if library.refused.is_some() {
                refused.push(library);
            }
        }
        plugins.sort_by_key(|row| (row.descriptor.kind, row.file.is_some()));
        Ok(Known { plugins, refused })
    }
}

/// Whether a folder, or the nearest one above it that is there, can be written.
fn is_writable(folder: &Path) -> bool {
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    rustix::fs::access(there, rustix::fs::Access::WRITE_OK).is_ok()
}

fn list(known: &Known, json: bool) -> anyhow::Result<()> {
    if json {
        let files: Vec<serde_json::Value> = known
            .refused
            .iter()
            .map(|library| serde_json::json!({ "file": library.path, "refused": library.refused }))
            .collect();
        return print_json(&serde_json::json!({ "plugins": known.plugins, "refused_files": files }));
    }
    print(&format!("{:<10} {:<20} {:<9} {}", "KIND", "NAME", "VERSION", "FROM"))?;
    for row in &known.plugins {
        let descriptor = &row.descriptor;
        let from = match (&row.file, &row.sha256) {
            (Some(file), Some(hash)) => format!("{} ({})", display(file), hash.get(..12).unwrap_or(hash)),
            (Some(file), None) => display(file),
            _ => "built in".into(),
        };
        let kind = descriptor.kind.name();
        print(&format!("{kind:<10} {:<20} {:<9} {from}", descriptor.name, descriptor.version))?;
        if let Some(why) = &row.refused {
            print(&format!("{:<10} refused: {why}", ""))?;
        }
    }
    for library in &known.refused {
        print(&format!("{:<10} {}", "refused", library.refused.as_deref().unwrap_or_default()))?;
    }
    print("\nfinetune plugin show NAME tells more of one")
}

fn show(known: &Known, name: &str, json: bool) -> anyhow::Result<()> {
    let found: Vec<&Row> = known.plugins.iter().filter(|row| row.descriptor.name == name).collect();
    if found.is_empty() {
        return Err(unknown(known, name));
    }
    if json {
        return print_json(&found);
    }
    for row in found {
        let mut text = description(&row.descriptor);
        if let (Some(file), Some(hash)) = (&row.file, &row.sha256) {
            text += &format!("\nfile       {}\nsha256     {hash}", display(file));
        }
        if let Some(why) = &row.refused {
            text += &format!("\nREFUSED    {why}");
        }
        print(&text)?;
    }
    Ok(())
}

fn unknown(known: &Known, name: &str) -> anyhow::Error {
    let near = did_you_mean(name, known.plugins.iter().map(|row| row.descriptor.name.as_str()));
    let hint = if near.is_empty() { "; `finetune plugin list` shows them".to_string() } else { near };
    let refused: String =
        known.refused.iter().filter_map(|l| l.refused.as_ref()).map(|why| format!("; {why}")).collect();
    Error::not_found(format!("there is no plugin named '{name}'{hint}{refused}")).into()
}

fn description(descriptor: &Descriptor) -> String {
    let mut text = format!("{} {} ({})\n\n{}\n", descriptor.name, descriptor.version, descriptor.kind, descriptor.help);
    if !descriptor.paper.is_empty() {
        text += &format!("{}\n", descriptor.paper);
    }
    let table = if descriptor.kind == Kind::Optimizer { "optimizer" } else { "loss" };
    text += &format!("\n[{table}]\nname = \"{}\"", descriptor.name);
    for parameter in &descriptor.parameters.0 {
        text += &format!("\n\n# {}; {}", parameter.help.trim_end_matches('.'), parameter.expected());
        // Switched off unless it has a value.
        text += &match parameter.default.is_null() {
            true => format!("\n#{} = {}", parameter.name, example(parameter)),
            false => format!("\n{} = {}", parameter.name, parameter.default),
        };
    }
    text
}

/// A value that the parameter would take, for a key without a default.
fn example(parameter: &Parameter) -> String {
    match &parameter.kind {
        ParameterType::Number => format!("{:.1}", parameter.minimum.unwrap_or(1.0).max(1.0)),
        ParameterType::Integer => "1".into(),
        ParameterType::Boolean => "true".into(),
        ParameterType::Text => "\"\"".into(),
        ParameterType::Choice(choices) => format!("{:?}", choices.first().map_or("", String::as_str)),
    }
}

fn check(describer: &Describer, file: &Path, json: bool) -> anyhow::Result<()> {
    let path = std::path::absolute(file)?;
    let sha256 = hash_of(&path)?;
    let offers = describer.describe(&path, &sha256, file)?;
    if json {
        return print_json(&serde_json::json!({ "file": path, "sha256": sha256, "offers": offers }));
    }
    print(&format!("{}\nsha256 {sha256}", file.display()))?;
    for offer in &offers {
        print(&format!("offers the {} {} {}: {}", offer.kind, offer.name, offer.version, offer.help))?;
    }
    Ok(())
}

/// A check of the conformance kit and how it ended.
#[derive(serde::Serialize)]
struct Tested {
    plugin: String,
    kind: Kind,
    check: &'static str,
    what: &'static str,
    /// Why it fails; none if it passes.
    failed: Option<String>,
    seconds: f64,
}

fn test(config: &Config, what: &str, json: bool) -> anyhow::Result<ExitCode> {
    let describer = Finder::of(config).describer;
    let (library, plugins) = tested(config, &describer, what)?;
    let mut results = Vec::new();
    for plugin in &plugins {
        if !json {
            print(&format!("{} {} ({})", plugin.name, plugin.version, plugin.kind))?;
        }
        for conformance::Check { name: check, help: meaning, .. } in conformance::checks(plugin.kind) {
            let begin = std::time::Instant::now();
            let file = library.as_ref().map(|(path, sha256)| (path.as_path(), sha256.as_str()));
            let failed = describer.check(file, plugin, check, CHECK_TIMEOUT)?.err();
            if !json {
                let verdict = if failed.is_none() { "ok" } else { "FAILED" };
                print(&format!("  {check:<14} {verdict:<7} {}", failed.as_deref().unwrap_or(meaning)))?;
            }
            results.push(Tested {
                plugin: plugin.name.clone(),
                kind: plugin.kind,
                check,
                what: meaning,
                failed,
                seconds: begin.elapsed().as_secs_f64(),
            });
        }
    }
    let failures = results.iter().filter(|result| result.failed.is_some()).count();
    if json {
        print_json(&results)?;
    } else if failures == 0 {
        print(&format!("{} checks passed", results.len()))?;
    } else {
        print(&format!("{failures} of {} checks failed", results.len()))?;
    }
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

type Tests = (Option<(PathBuf, String)>, Vec<Descriptor>);

/// The file to load, if any, and which of its plugins to test.
fn tested(config: &Config, describer: &Describer, what: &str) -> anyhow::Result<Tests> {
    let file = Path::new(what);
    let by_path = what.contains(std::path::MAIN_SEPARATOR) || what.ends_with(std::env::consts::DLL_SUFFIX);
    if by_path {
        let path = std::path::absolute(file)?;
        let sha256 = hash_of(&path)?;
        let offers = describer.describe(&path, &sha256, file)?;
        return Ok((Some((path, sha256)), offers));
    }
    let known = Known::find(config)?;
    let row = known.plugins.iter().find(|row| row.descriptor.name == what).ok_or_else(|| unknown(&known, what))?;
    let library = match &row.file {
        Some(file) => Some((file.clone(), hash_of(file)?)),
        None => None,
    };
    Ok((library, vec![row.descriptor.clone()]))
}

fn new(args: &NewArgs) -> anyhow::Result<()> {
    let files = finetuned_template::files(&args.name, args.kind.into()).map_err(anyhow::Error::msg)?;
    let folder = args.dir.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    let is_empty = std::fs::read_dir(&folder).map_or(true, |mut entries| entries.next().is_none());
    anyhow::ensure!(is_empty, "{} is there and is not empty; choose another --dir", folder.display());
    for (name, text) in &files {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let library = format!(
        "{}/target/release/{}{}{}",
        folder.display(),
        std::env::consts::DLL_PREFIX,
        args.name.replace('-', "_"),
        std::env::consts::DLL_SUFFIX
    );
    let table = if Kind::from(args.kind) == Kind::Optimizer { "optimizer" } else { "loss" };
    print(&format!(
        "{folder}: a plugin that builds as it is. Edit {folder}/src/lib.rs, then:

  cargo build --release --manifest-path {folder}/Cargo.toml
  finetune plugin test {library}
  install -D -m 644 {library} -t ~/.local/share/finetuned/plugins/

and in a recipe: {table} = \"{name}\"",
        folder = folder.display(),
        name = args.name
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_shown_as_a_recipe_would_say_it() {
        let dpo = finetuned_standard::BUILT_IN.iter().map(|p| (p.descriptor)()).find(|d| d.name == "dpo").unwrap();
        let text = description(&dpo);
        let (_, recipe) = text.split_once("\n[loss]").unwrap();
        let table: toml::Table = format!("[loss]{recipe}").parse().unwrap();
        finetuned_engine::recipe::Recipe::from_table(&table).unwrap();
        let set: serde_json::Map<String, serde_json::Value> =
            serde_json::from_value(serde_json::to_value(&table["loss"]).unwrap()).unwrap();
        let parameters = set.into_iter().filter(|(key, _)| key != "name").collect();
        dpo.check(&parameters).unwrap();
        assert!(text.contains("# ") && text.contains("#rpo_alpha = "), "{text}");
    }

    #[test]
    fn every_built_in_plugin_can_be_shown() {
        for plugin in finetuned_standard::BUILT_IN {
            let descriptor = (plugin.descriptor)();
            let text = description(&descriptor);
            let (_, recipe) = text.rsplit_once("\n[").unwrap();
            format!("[{recipe}").parse::<toml::Table>().unwrap_or_else(|error| panic!("{}: {error}", descriptor.name));
        }
    }
}
