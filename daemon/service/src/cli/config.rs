//! `finetune config`.

use clap::Subcommand;

use crate::config::{self, Config};
use crate::filesystem::display;

use super::{Global, print, print_json};

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Say every mistake, with file and line
    Check,
    /// Print what is in force
    Show {
        /// Say where each value comes from
        #[arg(long)]
        origin: bool,
        #[arg(long)]
        json: bool,
    },
    /// Print a documented configuration: every key, switched off, with its default
    Template,
    /// Print the keys as a JSON Schema: types, ranges, defaults, help
    Schema,
}

pub fn run(command: &ConfigCommand, global: &Global) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Check => check(&global.load()?),
        ConfigCommand::Show { origin, json } => show(&global.load()?, *origin, *json),
        ConfigCommand::Template => print(config::template().trim_end()),
        ConfigCommand::Schema => print_json(&config::schema()),
    }
}

fn check(config: &Config) -> anyhow::Result<()> {
    for warning in &config.warnings {
        eprintln!("finetune: {warning}");
    }
    print(&format!("{}: no mistakes", config.file.as_deref().map_or("the defaults".into(), display)))
}

fn show(config: &Config, with_origin: bool, json: bool) -> anyhow::Result<()> {
    if json {
        let keys: serde_json::Map<String, serde_json::Value> = config
            .shown
            .iter()
            .map(|(key, value, origin)| {
                (key.clone(), serde_json::json!({ "value": value, "origin": origin.to_string() }))
            })
            .collect();
        return print_json(&keys);
    }
    for (key, value, origin) in &config.shown {
        match with_origin {
            false => print(&format!("{key} = {value}"))?,
            true => print(&format!("{key} = {value}  # {origin}"))?,
        }
    }
    Ok(())
}
