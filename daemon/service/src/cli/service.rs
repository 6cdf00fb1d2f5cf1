//! `finetune service`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::filesystem::replace_file;
use crate::installation::{self, Installation, Programs, Scope, Step};

use super::{Global, print};

#[derive(Subcommand)]
#[command(after_help = "\
Examples:
  finetune service install                   for you alone
  sudo finetune service install --system     for the machine, as the user finetuned
  finetune service status")]
pub enum ServiceCommand {
    /// Put the service's file in place, and start it
    Install(InstallArgs),
    /// Stop the service and remove its file; state and configuration stay
    Uninstall(ScopeArgs),
    /// What the service manager says
    Status(ScopeArgs),
}

#[derive(Args)]
pub struct ScopeArgs {
    /// The user's own service [default, unless you are root]
    #[arg(long, conflicts_with = "system")]
    user: bool,
    /// The machine's
    #[arg(long)]
    system: bool,
}

#[derive(Args)]
pub struct InstallArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    /// Write the files, start nothing
    #[arg(long)]
    no_start: bool,
    /// Say what would be done
    #[arg(long)]
    dry_run: bool,
}

impl ScopeArgs {
    fn scope(&self) -> Scope {
        let root = rustix::process::geteuid().is_root();
        match (self.system || (root && !self.user), cfg!(target_os = "macos")) {
            (_, true) => Scope::Launchd,
            (true, false) => Scope::System,
            (false, false) => Scope::User,
        }
    }
}

pub fn run(command: &ServiceCommand, _global: &Global) -> anyhow::Result<()> {
    let home = std::env::home_dir().context("the home folder is unknown")?;
    match command {
        ServiceCommand::Install(args) => {
            let plan = installation::install(args.scope.scope(), &Programs::of_process()?, &home);
            if args.dry_run {
                return show(&plan);
            }
            install(&plan, !args.no_start)
        }
        ServiceCommand::Uninstall(args) => uninstall(&installation::uninstall(args.scope(), &home)),
        ServiceCommand::Status(args) => {
            let unit = installation::unit_path(args.scope(), &home);
            if !unit.exists() {
                return print(&format!("not installed ({} is not there); finetune service install", unit.display()));
            }
            run_step(&installation::status(args.scope()))
        }
    }
}

fn show(plan: &Installation) -> anyhow::Result<()> {
    for (from, to) in &plan.copies {
        print(&format!("copy {} to {}", from.display(), to.display()))?;
    }
    for file in &plan.files {
        let kept = if file.keep { " (unless it is there)" } else { "" };
        print(&format!("write {}{kept}:\n{}", file.path.display(), file.text))?;
    }
    plan.steps.iter().try_for_each(|step| print(&format!("run {}", step.words.join(" "))))
}

fn install(plan: &Installation, start: bool) -> anyhow::Result<()> {
    for (from, to) in &plan.copies {
        copy_program(from, to)?;
        print(&format!("copied {}", to.display()))?;
    }
    for file in &plan.files {
        if file.keep && file.path.exists() {
            continue;
        }
        let folder = file.path.parent().context("a file has a folder")?;
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        replace_file(&file.path, file.text.as_bytes()).context("is this the right user? (sudo, or --user)")?;
        print(&format!("wrote {}", file.path.display()))?;
    }
    if !start {
        return print("start it with:")
            .and_then(|()| plan.steps.iter().try_for_each(|step| print(&format!("  {}", step.words.join(" ")))));
    }
    plan.steps.iter().try_for_each(run_step)?;
    print("the service is installed and started; `finetune status` shows it")
}

/// A running program's file cannot be written over, but it can be replaced.
fn copy_program(from: &Path, to: &Path) -> anyhow::Result<()> {
    let mut aside = PathBuf::from(to);
    aside.set_extension("new");
    std::fs::copy(from, &aside).with_context(|| format!("cannot copy to {}", aside.display()))?;
    std::fs::rename(&aside, to).with_context(|| format!("cannot replace {}", to.display()))
}

fn uninstall(plan: &Installation) -> anyhow::Result<()> {
    if !plan.unit.exists() {
        return print(&format!("not installed ({} is not there)", plan.unit.display()));
    }
    let (first, rest) = plan.steps.split_first().context("there is something to do")?;
    run_step(first)?;
    std::fs::remove_file(&plan.unit).with_context(|| format!("cannot remove {}", plan.unit.display()))?;
    print(&format!("removed {}", plan.unit.display()))?;
    rest.iter().try_for_each(run_step)
}

fn run_step(step: &Step) -> anyhow::Result<()> {
    let (program, arguments) = step.words.split_first().context("a step has words")?;
    let status = Command::new(program).args(arguments).status();
    let words = step.words.join(" ");
    match status {
        Ok(status) if status.success() || step.may_fail => Ok(()),
        Ok(status) => anyhow::bail!("`{words}` failed ({status})"),
        Err(_) if step.may_fail => Ok(()),
        Err(error) => anyhow::bail!("`{words}`: {error}; the files are written, start the service by hand"),
    }
}
