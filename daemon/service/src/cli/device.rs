//! `finetune device`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use finetuned_engine::devices::{self, DeviceLine, OperationResult};

use super::{Global, print, print_json};
use crate::devices::{FILE, Tested, known, remember};
use crate::words;

#[derive(Subcommand)]
pub enum DeviceCommand {
    /// The devices of this machine: memory, types, driver, and whether they are tested
    List(ListArgs),
    /// Run every operation against the CPU's reference and remember the result
    Test(TestArgs),
}

#[derive(Args)]
pub struct ListArgs {
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = "\
A new card, driver or version of this program is tested once before it gets a
job. This command tests it now, and again after a driver was updated.

Examples:
  finetune device test                   the device that --device auto takes
  finetune device test --device vulkan:0")]
pub struct TestArgs {
    /// auto, cpu, gpu, gpu:N, vulkan:N, metal:N, dx12:N
    #[arg(long, default_value = "gpu")]
    device: String,
    #[arg(long)]
    json: bool,
}

pub fn run(command: &DeviceCommand, global: &Global) -> anyhow::Result<ExitCode> {
    match command {
        DeviceCommand::List(args) => list(args, global).map(|()| ExitCode::SUCCESS),
        DeviceCommand::Test(args) => test(args, global),
    }
}

fn list(args: &ListArgs, global: &Global) -> anyhow::Result<()> {
    let lines = devices::list()?;
    if args.json {
        return print_json(&lines);
    }
    let file = global.load()?.state_dir.join(FILE);
    let text: Vec<String> = lines.iter().map(|line| described(line, tested(line, &file))).collect();
    print(text.join("\n").trim_end())
}

/// Whether the device is trusted, in words.
fn tested(line: &DeviceLine, file: &std::path::Path) -> String {
    match devices::identity(&line.spec) {
        Ok(None) => "needs no test".into(),
        Ok(Some(identity)) => match known(file, &identity).map(|tested| tested.refusal()) {
            None => "not tested yet".into(),
            Some(None) => "tested, every operation is right".into(),
            Some(Some(why)) => format!("refused: {why}"),
        },
        Err(error) => error.to_string(),
    }
}

fn described(line: &DeviceLine, tested: String) -> String {
    let mut text = format!("{}  {} ({})\n", line.spec, line.name, line.kind);
    let mut row = |name: &str, value: String| text.push_str(&format!("    {name:<10} {value}\n"));
    if let Some(error) = &line.error {
        row("error", error.clone());
        return text;
    }
    if !line.driver.is_empty() {
        row("driver", line.driver.clone());
    }
    row("compiler", line.compiler.clone());
    let memory = if line.memory_bytes == 0 { "unknown".into() } else { words::bytes(line.memory_bytes) };
    row("memory", memory);
    if line.largest_buffer > 0 {
        row("buffer", format!("at most {}", words::bytes(line.largest_buffer)));
    }
    let cores = if line.tensor_cores { "with tensor cores" } else { "no tensor cores" };
    row("types", format!("{}, {cores}", line.types.join(", ")));
    if line.subgroup.1 > 1 {
        let (least, most) = line.subgroup;
        row("subgroup", if least == most { least.to_string() } else { format!("{least} to {most}") });
    }
    row("test", tested);
    text
}

fn test(args: &TestArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let mut count = 0;
    let results = devices::test(&args.device, &mut |result| {
        if !args.json {
            if count == 0 {
                println!("{:<24} {:>12} {:>12}", "operation", "worst error", "allowed");
            }
            count += 1;
            println!("{}", line_of(result));
        }
    })?;
    let identity = devices::identity(&args.device)?;
    let tested = Tested { device: identity.clone().unwrap_or_default(), failure: None, results };
    if identity.is_some() {
        remember(&global.load()?.state_dir.join(FILE), &tested)?;
    }
    let refusal = tested.refusal();
    if args.json {
        print_json(&tested.results)?;
    } else {
        let name = identity.unwrap_or_else(|| "cpu".into());
        match &refusal {
            None => print(&format!("{name}: all {} operations are right", tested.results.len()))?,
            Some(why) => print(&format!("{name}: not to be used: {why}"))?,
        }
    }
    Ok(if refusal.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn line_of(result: &OperationResult) -> String {
    let end = match (&result.reason, result.passed) {
        (Some(reason), _) => format!("  WRONG: {reason}"),
        (None, false) => "  WRONG".into(),
        (None, true) => String::new(),
    };
    format!("{:<24} {:>12.1e} {:>12.1e}{end}", result.operation, result.worst_error, result.tolerance)
}
