//! `finetune config`.

use clap::Subcommand;

use crate::config::Origin;
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
}

pub fn run(command: &ConfigCommand, global: &Global) -> anyhow::Result<()> {
    let config = global.load()?;
    match command {
        ConfigCommand::Check => {
            for warning in &config.warnings {
                eprintln!("finetune: {warning}");
            }
            print(&format!("{}: no mistakes", config.file.as_deref().map_or("the defaults".into(), display)))
        }
        ConfigCommand::Show { json: true, .. } => {
            let keys: serde_json::Map<String, serde_json::Value> = config
                .shown
                .iter()
                .map(|(key, value, origin)| {
                    (key.clone(), serde_json::json!({ "value": value, "origin": origin.to_string() }))
                })
                .collect();
            print_json(&keys)
        }
        ConfigCommand::Show { origin, .. } => {
            for (key, value, from) in &config.shown {
                match (*origin, from) {
                    (false, _) => print(&format!("{key} = {value}"))?,
                    (true, Origin::Default) => print(&format!("{key} = {value}  # default"))?,
                    (true, from) => print(&format!("{key} = {value}  # {from}"))?,
                }
            }
            Ok(())
        }
    }
}
