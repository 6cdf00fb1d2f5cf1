//! `finetune data`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use finetuned_engine::check_data;
use finetuned_engine::recipe::Recipe;

use crate::inbox::receipt;

use super::{Global, print, print_json};

#[derive(Subcommand)]
pub enum DataCommand {
    /// Read a dataset as a training would, and say what was found
    Check(CheckArgs),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  finetune data check support.jsonl
  finetune data check support.jsonl --model ./qwen2.5-0.5b --set train.sequence_length=512")]
pub struct CheckArgs {
    file: PathBuf,
    /// Whose tokenizer and chat template are used [default: the recipe's base]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Validation rows
    #[arg(long, value_name = "FILE")]
    validation: Option<PathBuf>,
    /// A recipe: a file, or one of the recipes that ship with finetune
    #[arg(long, value_name = "FILE|NAME")]
    recipe: Option<String>,
    /// Set a key of the recipe
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[arg(long)]
    json: bool,
}

pub fn run(command: &DataCommand, global: &Global) -> anyhow::Result<()> {
    let DataCommand::Check(args) = command;
    let recipe = Recipe::from_table(&crate::recipes::layers(args.recipe.as_deref(), &args.set)?)?;
    let base = args.model.clone().unwrap_or_else(|| recipe.base.clone());
    let model = crate::models::find_or_pull(&base, &global.load()?.models_dir, &mut |words| eprintln!("{words}"))?;
    let report = check_data(&args.file, args.validation.as_deref(), &model, &recipe)?;
    if args.json {
        return print_json(&report);
    }
    let mut text = String::new();
    receipt::of_dataset(&mut text, &report);
    print(&format!("{}\n{}", args.file.display(), text.trim()))
}
