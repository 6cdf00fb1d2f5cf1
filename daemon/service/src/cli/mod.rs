//! The command `finetune`.

mod bench;
mod config;
mod data;
mod device;
mod generate;
mod jobs;
mod models;
mod plugin;
mod service;
mod train;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Sources};
use crate::error::{self, Error};
use crate::exit;
use crate::http::client::Client;
use crate::plugins::child::ChildArgs;

/// Fine-tune language models: drop a dataset, get an adapter.
#[derive(Parser)]
#[command(
    name = "finetune",
    version,
    after_help = "\
Examples:
  finetune demo                              see a whole run, from nothing to an adapter
  finetuned &                                start the daemon; then drop files:
  cp support.jsonl ~/finetuned/inbox/
  finetune status                            what it does
  finetune logs -f                           follow it
  finetune data check support.jsonl          what would be trained, before it is
  finetune train --model smollm2-135m-instruct --data support.jsonl --method lora --out out/
                                             the same without a daemon
  finetune generate --model smollm2-135m-instruct --adapter out/ --prompt 'Hello'

Exit codes: 0 done; 1 failed; 64 wrong usage; 69 no daemon or device; 73 state
folder; 75 stopped before the end, the same command goes on; 78 configuration."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Args)]
struct Global {
    /// Configuration file [default: ./finetuned.toml, ~/.config/finetuned/finetuned.toml, /etc/finetuned/finetuned.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The daemon's control socket [default: from the configuration]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Global {
    fn sources(&self) -> Sources {
        let socket =
            self.socket.iter().map(|path| ("control.socket".to_string(), absolute_text(path), "--socket".to_string()));
        Sources::of_process(self.config.clone(), socket.collect())
    }

    fn load(&self) -> anyhow::Result<Config> {
        Ok(Config::load(&self.sources())?)
    }

    fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(&self.load()?.socket)?)
    }
}

/// A flag's path means what it means in the user's folder, not in the state's.
fn absolute_text(path: &std::path::Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    crate::config::absolute(path, &here).display().to_string()
}

#[derive(Subcommand)]
enum Command {
    /// A whole run on a sample dataset: model, daemon, training, before and after
    Demo(crate::demo::DemoArgs),
    /// Train in the foreground, without a daemon
    Train(train::TrainArgs),
    /// Say what a training would take, without training
    Plan(train::PlanArgs),
    /// Hand a dataset to the daemon
    Submit(jobs::SubmitArgs),
    /// What the daemon does
    Status(jobs::StatusArgs),
    /// What happened, and with -f what happens
    Logs(jobs::LogsArgs),
    /// End a job for good
    Cancel(jobs::JobArgs),
    /// Stop a job at a checkpoint
    Pause(jobs::JobArgs),
    /// Go on with a paused job
    Resume(jobs::JobArgs),
    /// Start a failed or cancelled job again, or a job whose recipe has changed
    Retry(jobs::RetryArgs),
    /// Make the daemon read its configuration again
    Reload,
    /// Look at the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// The base models that are here, and those that can be fetched
    Models(models::ModelsArgs),
    /// Let a model answer, with or without an adapter
    Generate(generate::GenerateArgs),
    /// Look at a dataset
    #[command(subcommand)]
    Data(data::DataCommand),
    /// GPUs and the CPU: what there is, and whether it computes right
    #[command(subcommand)]
    Device(device::DeviceCommand),
    /// Measure a training step
    Bench(bench::BenchArgs),
    /// Losses, optimizers and alignment methods: built in, and your own
    #[command(subcommand)]
    Plugin(plugin::PluginCommand),
    /// Install the daemon as a service of the system or of the user
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// A worker of the daemon
    #[command(hide = true)]
    Worker(WorkerArgs),
    /// The process that loads a plugin to look at it
    #[command(hide = true)]
    PluginChild(ChildArgs),
    /// The process that tests a device
    #[command(hide = true)]
    DeviceChild(DeviceChildArgs),
    /// The daemon itself, as `finetuned`
    #[command(hide = true)]
    Daemon(DaemonArgs),
}

#[derive(Args)]
/// The flags of the process that tests a device.
pub struct DeviceChildArgs {
    #[arg(long)]
    device: String,
}

#[derive(Args)]
/// The flags of a worker.
pub struct WorkerArgs {
    #[arg(long)]
    job: PathBuf,
}

/// The flags of `finetuned`.
#[derive(Args)]
pub struct DaemonArgs {
    /// The folder of everything the daemon keeps
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Watch this folder (may be given again)
    #[arg(long, value_name = "DIR")]
    inbox: Vec<PathBuf>,
    /// error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Set any key of the configuration: --set workers.threads=4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl DaemonArgs {
    fn sources(&self, global: &Global) -> anyhow::Result<Sources> {
        let mut sources = global.sources();
        let mut flag = |key: &str, value: String, shown: String| sources.flags.push((key.to_string(), value, shown));
        if let Some(path) = &self.state_dir {
            flag("state_dir", absolute_text(path), "--state-dir".into());
        }
        if !self.inbox.is_empty() {
            let paths: Vec<toml::Value> = self.inbox.iter().map(|path| absolute_text(path).into()).collect();
            flag("inbox.paths", toml::Value::Array(paths).to_string(), "--inbox".into());
        }
        if let Some(level) = &self.log_level {
            flag("log.level", level.clone(), "--log-level".into());
        }
        for assignment in &self.set {
            let Some((key, value)) = assignment.split_once('=') else {
                let error = Error::bad_input(format!("--set {assignment}: expected KEY=VALUE"));
                return Err(error.exit(exit::USAGE).into());
            };
            flag(key.trim(), value.trim().to_string(), format!("--set {assignment}"));
        }
        Ok(sources)
    }
}

/// `finetuned`: the daemon in the foreground.
#[derive(Parser)]
#[command(
    name = "finetuned",
    version,
    after_help = "\
Examples:
  finetuned                                  watch ~/finetuned/inbox
  finetuned --config site.toml
  finetuned --state-dir /data/ft --set workers.threads=8
Check a configuration with `finetune config check`; talk to the daemon with `finetune`.
SIGTERM or Ctrl-C: every worker writes a checkpoint, then the daemon ends; the
jobs go on at its next start. A second one: at once. SIGHUP: reload."
)]
struct DaemonCli {
    #[command(flatten)]
    global: Global,
    #[command(flatten)]
    daemon: DaemonArgs,
    #[command(subcommand)]
    command: Option<DaemonCommand>,
}

#[derive(Subcommand)]
enum DaemonCommand {
    #[command(hide = true)]
    Worker(WorkerArgs),
    #[command(hide = true)]
    PluginChild(ChildArgs),
    #[command(hide = true)]
    DeviceChild(DeviceChildArgs),
}

/// The main function of `finetuned`.
fn daemon_main() -> ExitCode {
    let cli = match DaemonCli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli.command {
        Some(DaemonCommand::Worker(args)) => crate::worker::main(&args.job),
        Some(DaemonCommand::PluginChild(args)) => crate::plugins::child::main(&args),
        Some(DaemonCommand::DeviceChild(args)) => crate::devices::child(&args.device),
        None => run_daemon(&cli.daemon, &cli.global),
    }
}

fn run_daemon(args: &DaemonArgs, global: &Global) -> ExitCode {
    match args.sources(global) {
        Ok(sources) => crate::daemon::main(&sources),
        Err(error) => error::report("finetuned", error),
    }
}

/// The main function of the program, which is the daemon if it is called `finetuned`.
pub fn main() -> ExitCode {
    let called = std::env::args_os().next().map(std::path::PathBuf::from).unwrap_or_default();
    if called.file_stem().is_some_and(|name| name == "finetuned") {
        return daemon_main();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let global = &cli.global;
    let done = |result: anyhow::Result<()>| result.map(|()| ExitCode::SUCCESS);
    let result = match cli.command {
        Command::Worker(args) => return crate::worker::main(&args.job),
        Command::PluginChild(args) => return crate::plugins::child::main(&args),
        Command::DeviceChild(args) => return crate::devices::child(&args.device),
        Command::Daemon(args) => return run_daemon(&args, global),
        Command::Demo(args) => done(crate::demo::run(&args)),
        Command::Train(args) => train::train(&args, global),
        Command::Plan(args) => done(train::plan(&args, global)),
        Command::Submit(args) => done(jobs::submit(&args, global)),
        Command::Status(args) => done(jobs::status(&args, global)),
        Command::Logs(args) => done(jobs::logs(&args, global)),
        Command::Cancel(args) => done(jobs::cancel(&args, global)),
        Command::Pause(args) => done(jobs::pause(&args, global)),
        Command::Resume(args) => done(jobs::resume(&args, global)),
        Command::Retry(args) => done(jobs::retry(&args, global)),
        Command::Reload => done(jobs::reload(global)),
        Command::Config(command) => done(config::run(&command, global)),
        Command::Models(args) => done(models::run(&args, global)),
        Command::Generate(args) => done(generate::run(&args, global)),
        Command::Data(command) => done(data::run(&command, global)),
        Command::Device(command) => device::run(&command, global),
        Command::Bench(args) => done(bench::run(&args, global)),
        Command::Plugin(command) => plugin::run(&command, global),
        Command::Service(command) => done(service::run(&command, global)),
    };
    result.unwrap_or_else(|error| error::report("finetune", error))
}

/// Help and version are not errors; the rest is wrong usage.
fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(exit::USAGE) } else { ExitCode::SUCCESS }
}

/// One JSON document on stdout.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}

/// A line on stdout. A reader that went away (`| head`) is not an error.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_lines_are_well_formed() {
        Cli::command().debug_assert();
        DaemonCli::command().debug_assert();
    }

    #[test]
    fn the_names_that_tools_call_are_there() {
        let commands = Cli::command();
        let names: Vec<&str> = commands.get_subcommands().map(|c| c.get_name()).collect();
        for name in [
            "demo", "service", "submit", "status", "logs", "cancel", "pause", "resume", "retry", "reload", "config",
            "models", "plugin", "generate", "data", "plan", "bench", "train",
        ] {
            assert!(names.contains(&name), "{name}");
        }
    }

    #[test]
    fn the_issues_command_lines_parse() {
        for line in [
            "finetune train --model M --data F --method qlora --out D --recipe R --adapter A --validation V --device cpu --set a=1 --set b=2 --fresh",
            "finetune plan --model M --data F --method full",
            "finetune bench --shape smollm2-135m",
            "finetune data check F --model M",
            "finetune models pull smollm2-135m-instruct",
            "finetune status --json",
            "finetune status --all",
            "finetune status --limit 3 --state failed",
            "finetune logs -f",
            "finetune config show --origin",
            "finetune service install --user",
            "finetune --socket s retry 7 --fresh",
            "finetune retry 7 --accept-plugin-change",
            "finetune plugin list --json",
            "finetune plugin show dpo",
            "finetune plugin check libmine.so",
            "finetune plugin test libmine.so",
            "finetune plugin new my-loss --kind loss",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        assert!(Cli::try_parse_from("finetune train --model M --data F --method lore --out D".split(' ')).is_err());
        assert!(DaemonCli::try_parse_from("finetuned --config F".split(' ')).is_ok());
    }
}
