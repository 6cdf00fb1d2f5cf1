//! `finetune device`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use finetuned_engine::devices::{self, Candidate, DeviceLine, OperationResult};

use super::{Global, print, print_json};
use crate::devices::{FILE, Tested, known, remember, test_in_a_child};
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
    /// auto, cpu, gpu, gpu:N, vulkan:N, metal:N, dx12:N, cuda:N; behind it /spirv or /wgsl, /f32, /bf16 or /f16
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
    print(text.join("\n").trim_end())?;
    match crate::devices::idle_gpu() {
        Some(idle) => print(&idle),
        None => Ok(()),
    }
}

/// Whether the device is trusted, for people, one compiler per line.
fn tested(line: &DeviceLine, file: &std::path::Path) -> String {
    let candidates = match devices::candidates(&line.spec) {
        Ok(candidates) => candidates,
        Err(error) => return error.to_string(),
    };
    if candidates.is_empty() {
        return "needs no test".into();
    }
    let told = candidates.iter().map(|candidate| {
        let words = match known(file, &candidate.identity).map(|tested| tested.refusal()) {
            None => "not tested yet".into(),
            Some(None) => "tested, every operation is right".into(),
            Some(Some(why)) => format!("refused: {why}"),
        };
        format!("{}: {words}", candidate.spec)
    });
    told.collect::<Vec<_>>().join("\n               ")
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
    let cores = match &line.tensor_cores {
        Some(kind) => format!("tensor cores of {kind}"),
        None => "no tensor cores".into(),
    };
    row("types", format!("{}; {cores}", line.types.join(", ")));
    if line.subgroup.1 > 1 {
        let (least, most) = line.subgroup;
        row("subgroup", if least == most { least.to_string() } else { format!("{least} to {most}") });
    }
    row("test", tested);
    text
}

fn test(args: &TestArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let file = global.load()?.state_dir.join(FILE);
    let candidates = devices::candidates(&args.device)?;
    if candidates.is_empty() {
        let mut show = Table::new(args.json);
        let results = devices::test(&args.device, &mut |result| show.row(result))?;
        return finish(args, vec![Tested { device: "cpu".into(), failure: None, results }]);
    }
    let mut all = Vec::new();
    let alone = candidates.len() == 1;
    for Candidate { spec, identity } in candidates {
        // A driver may crash its process, so each is tested in a child, unless the user
        // named one.
        let tested = if alone {
            let mut show = Table::new(args.json);
            let results = devices::test(&spec, &mut |result| show.row(result))?;
            Tested { device: identity, failure: None, results }
        } else {
            let tested = test_in_a_child(&spec, &identity, &file)?;
            let mut show = Table::new(args.json);
            tested.results.iter().for_each(|result| show.row(result));
            tested
        };
        remember(&file, &tested)?;
        all.push(tested);
    }
    finish(args, all)
}

/// Prints the result: the device is good if one of its compilers is.
fn finish(args: &TestArgs, all: Vec<Tested>) -> anyhow::Result<ExitCode> {
    if args.json {
        print_json(&all)?;
    } else {
        for tested in &all {
            match tested.refusal() {
                None => print(&format!("{}: all {} operations are right", tested.device, tested.results.len()))?,
                Some(why) => print(&format!("{}: not to be used: {why}", tested.device))?,
            }
        }
    }
    let good = all.iter().any(|tested| tested.refusal().is_none());
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The table of results, as they come.
struct Table {
    silent: bool,
    rows: usize,
}

impl Table {
    fn new(silent: bool) -> Table {
        Table { silent, rows: 0 }
    }

    fn row(&mut self, result: &OperationResult) {
        if self.silent {
            return;
        }
        if self.rows == 0 {
            println!("{:<24} {:>12} {:>12}", "operation", "worst error", "allowed");
        }
        self.rows += 1;
        println!("{}", line_of(result));
    }
}

fn line_of(result: &OperationResult) -> String {
    let end = match (&result.reason, result.passed) {
        (Some(reason), _) => format!("  WRONG: {reason}"),
        (None, false) => "  WRONG".into(),
        (None, true) => String::new(),
    };
    format!("{:<24} {:>12.1e} {:>12.1e}{end}", result.operation, result.worst_error, result.tolerance)
}
