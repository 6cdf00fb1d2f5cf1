//! `finetune train` and `finetune plan`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use finetuned_engine::{ErrorKind, Method, Outcome, Plan, PluginLibrary, Recipe, TrainRequest};

use crate::config::Config;
use crate::error::Error;
use crate::filesystem::display;
use crate::foreground::{Console, Style, summary_lines};
use crate::plugins::{self, Crashes, Finder};
use crate::protocol::{PluginLimits, RunRequest};
use crate::{models, recipes, run, words};

use super::{Global, print, print_json};

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum MethodArg {
    Full,
    Lora,
    Qlora,
}

impl From<MethodArg> for Method {
    fn from(arg: MethodArg) -> Method {
        match arg {
            MethodArg::Full => Method::Full,
            MethodArg::Lora => Method::Lora,
            MethodArg::Qlora => Method::Qlora,
        }
    }
}

/// What `train` and `plan` have in common.
#[derive(Args)]
pub struct RunArgs {
    /// The base model: a folder, a .gguf file or a name of the catalogue [default: the recipe's base]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// The dataset (.jsonl or .json)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// What is trained [default: the recipe's method]
    #[arg(long, value_enum)]
    method: Option<MethodArg>,
    /// A recipe: a file, or one of the recipes that ship with finetune
    #[arg(long, value_name = "FILE|NAME")]
    recipe: Option<String>,
    /// A PEFT adapter to start from
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Validation rows [default: a share of the dataset, train.validation_fraction]
    #[arg(long, value_name = "FILE")]
    validation: Option<PathBuf>,
    /// auto (the best GPU, or the CPU), cpu, gpu, gpu:N, vulkan:N, metal:N, dx12:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Set a key of the recipe (may be given again): --set train.epochs=1
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl RunArgs {
    fn recipe(&self) -> anyhow::Result<Recipe> {
        let mut table = recipes::layers(self.recipe.as_deref(), &[])?;
        if let Some(method) = self.method {
            table.insert("method".into(), Method::from(method).name().into());
        }
        if let Some(model) = &self.model {
            table.insert("base".into(), model.clone().into());
        }
        for assignment in &self.set {
            finetuned_engine::recipe::set(&mut table, assignment)?;
        }
        Ok(Recipe::from_table(&table)?)
    }

    fn request(&self, recipe: Recipe, plugins: Vec<PluginLibrary>, out: PathBuf, fresh: bool) -> TrainRequest {
        TrainRequest {
            data: self.data.clone(),
            validation: self.validation.clone(),
            adapter: self.adapter.clone(),
            out,
            recipe,
            device: self.device.clone(),
            fresh,
            threads: self.threads,
            plugins,
            accept_plugin_change: false,
        }
    }
}

/// The plugins that a recipe names, copied and ready to be loaded by this
/// process, which is the run's own.
pub fn plugins_of(recipe: &Recipe, config: &Config) -> anyhow::Result<Vec<PluginLibrary>> {
    // Quarantine is the daemon's: here the author of a plugin looks at it.
    Ok(plugins::libraries_of(&Finder::of(config).resolve(recipe, &Crashes::new())?))
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  finetune train --model smollm2-135m-instruct --data support.jsonl --method lora --out out/
  finetune train --model ./base --data d.jsonl --method qlora --out out/ --set train.epochs=1 --set lora.rank=8
  finetune train --data d.jsonl --recipe quick-lora --out out/

DIR receives the adapter (or the model), metrics.jsonl (one object a step), report.html
and checkpoints. The same command again goes on where it was cut off; a finished run says so.")]
pub struct TrainArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Where the result, metrics.jsonl and the checkpoints go
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Start over, whatever DIR holds
    #[arg(long)]
    fresh: bool,
    /// Go on from a checkpoint although a plugin was rebuilt since
    #[arg(long)]
    accept_plugin_change: bool,
    /// Events as JSON lines on stdout, in place of the progress
    #[arg(long)]
    json: bool,
}

pub fn train(args: &TrainArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let config = global.load()?;
    let recipe = args.run.recipe()?;
    let plugins = plugins_of(&recipe, &config)?;
    let mut train = args.run.request(recipe, plugins, args.out.clone(), args.fresh);
    train.accept_plugin_change = args.accept_plugin_change;
    let request = RunRequest {
        plugin_limits: Some(PluginLimits::of(&config.plugins)),
        devices_file: Some(config.state_dir.join(crate::devices::FILE)),
        models_dir: config.models_dir,
        verify_sha256: None,
        memory_bytes: None,
        train,
    };
    let mut console = Console::new(if args.json { Style::Json } else { Style::of_terminal() });
    let outcome = run::execute(&request, &mut console).map_err(|error| match error.kind() {
        ErrorKind::Device => {
            error.remedy("once the device is there, the same command goes on from the last checkpoint")
        }
        _ => error,
    })?;
    console.finish();
    match outcome {
        Outcome::Finished(summary) => {
            if !args.json {
                print(&summary_lines(&summary, &args.out))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Outcome::AlreadyFinished(summary) => {
            if args.json {
                print(&serde_json::to_string(&finetuned_engine::Event::Finished(summary))?)?;
            } else {
                print(&format!("{} holds this run, finished; --fresh would start over", display(&args.out)))?;
                print(&summary_lines(&summary, &args.out))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Stopped { step } => {
            let error = Error::new(ErrorKind::Cancelled, format!("stopped after step {step}"));
            Err(error.remedy("the same command goes on from there").into())
        }
        Outcome::Cancelled { step } => {
            let error = Error::new(ErrorKind::Cancelled, format!("cancelled after step {step}"));
            Err(error.remedy("the same command goes on from its last checkpoint").into())
        }
    }
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  finetune plan --model smollm2-135m-instruct --data support.jsonl --method lora
  finetune plan --model ./base --data d.jsonl --method full --set train.gradient_checkpointing=true")]
pub struct PlanArgs {
    #[command(flatten)]
    run: RunArgs,
    /// As in `train`; nothing is written
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// As in `train`
    #[arg(long)]
    fresh: bool,
    #[arg(long)]
    json: bool,
}

pub fn plan(args: &PlanArgs, global: &Global) -> anyhow::Result<()> {
    let recipe = args.run.recipe()?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from("out"));
    let config = global.load()?;
    let plugins = plugins_of(&recipe, &config)?;
    let mut request = args.run.request(recipe, plugins, out, args.fresh);
    models::locate_base(&mut request.recipe, &config.models_dir, &mut |words| eprintln!("{words}"))?;
    let plan = finetuned_engine::plan(&request)?;
    if args.json { print_json(&plan) } else { print(&plan_lines(&plan)) }
}

/// A plan as a table.
pub fn plan_lines(plan: &Plan) -> String {
    let mut text = format!("device {}\n", plan.device);
    for part in &plan.parts {
        text += &format!("  {:<22} {:>12}\n", part.name, words::bytes(part.bytes));
    }
    text += &format!("  {:<22} {:>12}", "peak", words::bytes(plan.peak_bytes));
    if plan.available_bytes > 0 {
        text += &format!(" of {}", words::bytes(plan.available_bytes));
    }
    if plan.offloaded_bytes > 0 {
        text +=
            &format!("\n  {:<22} {:>12} of host memory", "offloaded activations", words::bytes(plan.offloaded_bytes));
    }
    text += match (plan.fits, plan.available_bytes) {
        (_, 0) => "\n  the device does not say how much memory it has\n",
        (true, _) => "\n  it fits\n",
        (false, _) => "\n  IT DOES NOT FIT\n",
    };
    if let Some(remedy) = &plan.remedy {
        text += &format!("  {remedy}\n");
    }
    text += &format!(
        "\n{} of {} parameters are trained\nmicro-batch {} (at most {} of the longest rows fit)\n{} steps of about {:.0} tokens, {} each, {} in all",
        words::count(plan.trainable_parameters),
        words::count(plan.parameters),
        plan.micro_batch_size,
        plan.largest_micro_batch,
        plan.steps,
        plan.tokens_per_step,
        words::seconds(plan.seconds_per_step),
        words::seconds(plan.total_seconds)
    );
    text
}
