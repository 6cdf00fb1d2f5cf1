//! `finetune bench`.

use clap::Args;
use finetuned_engine::bench::{BenchOptions, bench};
use finetuned_engine::recipe::Recipe;

use super::generate::ToStderr;
use super::train::MethodArg;
use super::{Global, print, print_json};

#[derive(Args)]
#[command(after_help = "\
Examples:
  finetune bench --shape smollm2-135m
  finetune bench --shape smollm2-135m --loss hard-tokens
  finetune bench --shape smollm2-135m --device gpu --profile
  finetune bench --model ./model --method qlora --tokens 512 --sequences 2")]
pub struct BenchArgs {
    /// A model: a path or a name of the catalogue
    #[arg(long, value_name = "MODEL", conflicts_with = "shape")]
    model: Option<String>,
    /// A shape with random weights, such as smollm2-135m
    #[arg(long, value_name = "NAME", required_unless_present = "model")]
    shape: Option<String>,
    #[arg(long, value_enum, default_value = "lora")]
    method: MethodArg,
    /// Tokens of a sequence
    #[arg(long, default_value_t = 256)]
    tokens: usize,
    /// Sequences of a step
    #[arg(long, default_value_t = 4)]
    sequences: usize,
    /// Steps that are measured
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Rank of the adapter
    #[arg(long, default_value_t = 16)]
    lora_rank: usize,
    /// Recompute activations
    #[arg(long)]
    gradient_checkpointing: bool,
    /// Also time steps with this loss in turn with the built-in cross-entropy
    #[arg(long, value_name = "NAME")]
    loss: Option<String>,
    /// Also time every operation of a step by itself
    #[arg(long)]
    profile: bool,
    /// auto, cpu, gpu, gpu:N, vulkan:N, metal:N, dx12:N; behind it /f32 for products in f32
    #[arg(long, default_value = "auto")]
    device: String,
    #[arg(long)]
    threads: Option<usize>,
    #[arg(long)]
    json: bool,
}

pub fn run(args: &BenchArgs, global: &Global) -> anyhow::Result<()> {
    let model = match &args.model {
        Some(name) => {
            Some(crate::models::find_or_pull(name, &global.load()?.models_dir, &mut |words| eprintln!("{words}"))?)
        }
        None => None,
    };
    let plugins = match &args.loss {
        Some(name) => {
            let mut recipe = Recipe::default();
            recipe.loss.name.clone_from(name);
            super::train::plugins_of(&recipe, &global.load()?)?
        }
        None => Vec::new(),
    };
    // The compiler that the self-test trusts, as a run would take it.
    let file = global.load()?.state_dir.join(crate::devices::FILE);
    let device = crate::devices::trusted(&args.device, &file, &mut ToStderr)?;
    let report = bench(&BenchOptions {
        model,
        shape: args.shape.clone(),
        method: args.method.into(),
        tokens: args.tokens,
        sequences: args.sequences,
        lora_rank: args.lora_rank,
        gradient_checkpointing: args.gradient_checkpointing,
        device,
        threads: args.threads,
        steps: args.steps,
        profile: args.profile,
        loss: args.loss.clone(),
        plugins,
    })?;
    if args.json { print_json(&report) } else { print(&report.to_string()) }
}
