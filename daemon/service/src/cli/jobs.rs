//! The commands about jobs, which talk to the daemon.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use finetuned_engine::metrics::{LOSS, METRICS};

use crate::api::{self, Endpoint, EventsQuery, JobView, Retry, Status, StatusQuery, Submission, SummaryView};
use crate::error;
use crate::filesystem::display;
use crate::http::client::Client;
use crate::store::{EventRow, JobQuery, State, timestamp};
use crate::words;

use super::{Global, print, print_json};

#[derive(Args)]
#[command(after_help = "\
Examples:
  finetune submit support.jsonl
  finetune submit support.jsonl --recipe quick-lora --set train.epochs=1
  finetune submit more.jsonl --adapter ~/finetuned/adapters/support-7")]
pub struct SubmitArgs {
    /// The dataset (.jsonl or .json)
    data: PathBuf,
    /// Validation rows
    #[arg(long, value_name = "FILE")]
    validation: Option<PathBuf>,
    /// A PEFT adapter to start from
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// A recipe: a file, or one of the recipes that ship with finetune
    #[arg(long, value_name = "FILE|NAME")]
    recipe: Option<String>,
    /// The base model: a path or a name of the catalogue
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Set a key of the recipe: --set train.epochs=1
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// A name for the job [default: the file's]
    #[arg(long)]
    name: Option<String>,
    #[arg(long)]
    json: bool,
}

pub fn submit(args: &SubmitArgs, global: &Global) -> anyhow::Result<()> {
    let mut recipe = crate::recipes::layers(args.recipe.as_deref(), &args.set)?;
    if let Some(model) = &args.model {
        let here = PathBuf::from(model);
        let model = if here.exists() { std::path::absolute(here)?.display().to_string() } else { model.clone() };
        recipe.insert("base".into(), model.into());
    }
    let submission = Submission {
        data: absolute(&args.data)?,
        validation: args.validation.as_ref().map(absolute).transpose()?,
        adapter: args.adapter.as_ref().map(absolute).transpose()?,
        name: args.name.clone(),
        recipe,
    };
    let submitted = global.client()?.ask(&api::SUBMIT, &(), &submission)?;
    if args.json {
        return print_json(&submitted);
    }
    let job = &submitted.job.job;
    if submitted.is_new {
        print(&format!("job {} ({}) is queued; follow it with: finetune logs -f {}", job.id, job.name, job.id))
    } else {
        print(&format!(
            "the same data and recipe are job {} ({}); `finetune retry {}` trains again",
            job.id, job.state, job.id
        ))
    }
}

fn absolute(path: &PathBuf) -> anyhow::Result<PathBuf> {
    std::fs::canonicalize(path).with_context(|| format!("cannot open {}", path.display()))
}

#[derive(Args)]
pub struct StatusArgs {
    /// One job, in full
    job: Option<i64>,
    /// Every job, newest first
    #[arg(long, conflicts_with_all = ["job", "limit"])]
    all: bool,
    /// At most so many jobs [default: 20]
    #[arg(long, value_name = "N", conflicts_with = "job")]
    limit: Option<usize>,
    /// The jobs of one state alone, newest first
    #[arg(long, value_name = "STATE", conflicts_with = "job")]
    state: Option<State>,
    #[arg(long)]
    json: bool,
}

pub fn status(args: &StatusArgs, global: &Global) -> anyhow::Result<()> {
    let client = global.client()?;
    if let Some(id) = args.job {
        let view = client.ask_of(&api::JOB, id, &(), &())?;
        return if args.json { print_json(&view) } else { print(&one_job(&view)) };
    }
    let mut status = client.ask(&api::STATUS, &StatusQuery { limit: args.limit }, &())?;
    if args.all || args.state.is_some() {
        status.jobs = listed(&client, args.state, args.limit)?;
        status.counts.retain(|state, _| args.state.is_none_or(|wanted| wanted == *state));
    }
    if args.json { print_json(&status) } else { print(&overview(&status)) }
}

/// The newest `limit` jobs, or all of them, of one state or of every state.
fn listed(client: &Client, state: Option<State>, limit: Option<usize>) -> error::Result<Vec<SummaryView>> {
    let mut jobs: Vec<SummaryView> = Vec::new();
    loop {
        let limit = limit.map(|limit| limit - jobs.len());
        let page = JobQuery { limit, state, before: jobs.last().map(|view| view.job.id) };
        let next = if limit == Some(0) { Vec::new() } else { client.ask(&api::JOBS, &page, &())? };
        if next.is_empty() {
            return Ok(jobs);
        }
        jobs.extend(next);
    }
}

fn overview(status: &Status) -> String {
    let daemon = &status.daemon;
    let mut text = format!(
        "finetuned {}, process {}, up {}{}\nstate {}\n",
        daemon.version,
        daemon.pid,
        words::seconds(daemon.uptime_seconds),
        if daemon.stopping { ", stopping" } else { "" },
        display(&daemon.state_dir)
    );
    for inbox in &status.inboxes {
        text += &format!("inbox {}\n", display(&inbox.path));
        for waiting in &inbox.waiting {
            let name = waiting.path.display().to_string();
            let name = if name.is_empty() { String::new() } else { format!("{name} ") };
            text += &format!("  {name}{}\n", waiting.why);
        }
    }
    if status.counts.is_empty() {
        text += "\nno jobs yet: copy a .jsonl file into the inbox";
        return text;
    }
    text += &format!(
        "\n{:>4}  {:<24} {:<10} {:>13} {:>9} {:>9} {:>8} {:>9}",
        "JOB", "NAME", "STATE", "STEP", "LOSS", "VAL LOSS", "TOK/S", "LEFT"
    );
    for view in &status.jobs {
        text += &format!("\n{}", row(view));
    }
    if status.more() > 0 {
        let counts: Vec<String> = status.counts.iter().map(|(state, jobs)| format!("{jobs} {state}")).collect();
        text +=
            &format!("\n\n{} more (in all: {}); finetune status --all shows them", status.more(), counts.join(", "));
    }
    text
}

fn row(view: &SummaryView) -> String {
    let (job, progress) = (&view.job, &view.job.progress);
    let number = |value: Option<f64>, digits: usize| value.map_or("-".to_string(), |value| format!("{value:.digits$}"));
    let step =
        if progress.total_steps > 0 { format!("{}/{}", progress.step, progress.total_steps) } else { "-".into() };
    let active = job.state == State::Running;
    format!(
        "{:>4}  {:<24} {:<10} {:>13} {:>9} {:>9} {:>8} {:>9}",
        job.id,
        shortened(&job.name, 24),
        job.state,
        step,
        number(progress.loss, 4),
        number(progress.validation_loss, 4),
        number(progress.tokens_per_second.filter(|_| active), 0),
        view.seconds_left.map_or("-".into(), words::seconds)
    )
}

fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most { text.to_string() } else { text.chars().take(most - 1).chain(['…']).collect() }
}

fn one_job(view: &JobView) -> String {
    let job = &view.job;
    let mut text = format!(
        "job {} ({}) is {}\n  data       {}\n  output     {}\n  base       {}\n  method     {}\n  claimed    {}\n  attempts   {}",
        job.id,
        job.name,
        job.state,
        display(&job.data),
        display(&job.out),
        job.recipe.base,
        job.recipe.method.name(),
        timestamp(job.created_ms),
        job.attempts
    );
    for plugin in &job.plugins {
        text += &format!("\n  plugin     {} {} ({})", plugin.name, plugin.version, display(&plugin.library.origin));
    }
    let progress = &job.progress;
    if let Some(phase) = progress.phase.as_ref().filter(|_| job.state.is_active()) {
        text += &format!("\n  phase      {phase}");
    }
    if progress.total_steps > 0 {
        text += &format!("\n  step       {} of {}", progress.step, progress.total_steps);
    }
    for (name, value) in
        [("loss", progress.loss), ("val loss", progress.validation_loss), ("tokens/s", progress.tokens_per_second)]
    {
        if let Some(value) = value {
            text += &format!("\n  {name:<10} {value:.4}");
        }
    }
    if let Some(left) = view.seconds_left {
        text += &format!("\n  left       {}", words::seconds(left));
    }
    if let Some(error) = &job.error {
        let name = if job.state == State::Paused { "why" } else { "error" };
        let kind = job.error_kind.map_or(String::new(), |kind| format!("{kind}: "));
        text += &format!("\n  {name:<10} {kind}{}", error.replace('\n', "\n             "));
    }
    if let Some(report) = &job.report {
        let mut rows = String::new();
        crate::inbox::receipt::of_dataset(&mut rows, report);
        text += rows.trim_end();
    }
    text
}

#[derive(Args)]
pub struct LogsArgs {
    /// Of one job [default: of all]
    job: Option<i64>,
    /// Go on as things happen, until the job ends
    #[arg(short, long)]
    follow: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub fn logs(args: &LogsArgs, global: &Global) -> anyhow::Result<()> {
    let client = global.client()?;
    let show = |row: &EventRow| -> anyhow::Result<()> {
        if args.json {
            return print(&serde_json::to_string(row)?);
        }
        print(&event_line(row))
    };
    if args.follow {
        let mut failed = None;
        client.follow(args.job, &mut |line| {
            let shown = serde_json::from_str(line).map_err(Into::into).and_then(|row| show(&row));
            failed = shown.err();
            failed.is_none()
        })?;
        return failed.map_or(Ok(()), Err);
    }
    let mut query = EventsQuery::default();
    loop {
        let rows = match args.job {
            Some(id) => client.ask_of(&api::JOB_EVENTS, id, &query, &())?,
            None => client.ask(&api::EVENTS, &query, &())?,
        };
        let Some(last) = rows.last() else { return Ok(()) };
        query.after = last.id;
        rows.iter().try_for_each(show)?;
    }
}

/// An event as one line for people.
pub fn event_line(row: &EventRow) -> String {
    let body = &row.body;
    let text = |key: &str| body.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_string();
    let number = |key: &str| body.get(key).and_then(serde_json::Value::as_f64);
    let what = match row.kind.as_str() {
        "state" => format!("{}: {}", text("to"), text("why")),
        "phase" => text("name"),
        "note" => format!("note: {}", text("message")),
        "step" => {
            let mut line = format!("step {}", number("step").unwrap_or_default());
            for metric in METRICS {
                let Some(label) = metric.line else { continue };
                if let Some(value) = number(metric.name) {
                    line += &format!("  {label} {}", metric.format.write(value));
                }
                if let Some(value) = number(&metric.validation_name()) {
                    line += &format!("  validation {label} {}", metric.format.write(value));
                }
            }
            line
        }
        "validation" => {
            let loss = LOSS.format.write(number("loss").unwrap_or(f64::NAN));
            format!("step {}  validation loss {loss}", number("step").unwrap_or_default())
        }
        "checkpoint" => format!("checkpoint at step {}", number("step").unwrap_or_default()),
        "started" => format!(
            "training {} steps, from step {}",
            number("total_steps").unwrap_or_default(),
            number("resumed_from").unwrap_or_default()
        ),
        "prepared" => {
            let report = body.get("report").unwrap_or(body);
            let count = |key: &str| report.get(key).and_then(serde_json::Value::as_u64).unwrap_or_default();
            format!(
                "dataset: {} rows, {} tokens, {} trained, {} bad rows",
                count("rows"),
                count("tokens"),
                count("trained_tokens"),
                count("bad_row_count")
            )
        }
        "planned" => {
            let peak = body.get("plan").and_then(|plan| plan.get("peak_bytes")).and_then(serde_json::Value::as_u64);
            format!("plan: {} at the peak", peak.map_or("?".into(), words::bytes))
        }
        "finished" => "finished".to_string(),
        other => format!("{other} {body}"),
    };
    format!("{}  job {}  {what}", timestamp(row.at_ms), row.job)
}

#[derive(Args)]
pub struct JobArgs {
    /// The job's number, as in `finetune status`
    job: i64,
    #[arg(long)]
    json: bool,
}

pub fn cancel(args: &JobArgs, global: &Global) -> anyhow::Result<()> {
    act(&api::CANCEL, "is being cancelled", args, global)
}

pub fn pause(args: &JobArgs, global: &Global) -> anyhow::Result<()> {
    act(&api::PAUSE, "pauses at the end of its step", args, global)
}

pub fn resume(args: &JobArgs, global: &Global) -> anyhow::Result<()> {
    act(&api::RESUME, "is at work", args, global)
}

/// Asks for a change of a job; `active` says what happens to one that has a worker.
fn act(endpoint: &Endpoint<(), (), JobView>, active: &str, args: &JobArgs, global: &Global) -> anyhow::Result<()> {
    let view = global.client()?.ask_of(endpoint, args.job, &(), &())?;
    if args.json {
        return print_json(&view);
    }
    let job = &view.job;
    match job.state.is_active() {
        true => print(&format!("job {} {active}", job.id)),
        false => print(&format!("job {} is {}", job.id, job.state)),
    }
}

#[derive(Args)]
pub struct RetryArgs {
    /// The job's number, as in `finetune status`
    job: i64,
    /// Start over instead of going on from the last checkpoint
    #[arg(long)]
    fresh: bool,
    /// Go on from the last checkpoint although a plugin was rebuilt since
    #[arg(long, conflicts_with = "fresh")]
    accept_plugin_change: bool,
    #[arg(long)]
    json: bool,
}

pub fn retry(args: &RetryArgs, global: &Global) -> anyhow::Result<()> {
    let wish = Retry { fresh: args.fresh, accept_plugin_change: args.accept_plugin_change };
    let view = global.client()?.ask_of(&api::RETRY, args.job, &(), &wish)?;
    if args.json {
        return print_json(&view);
    }
    let job = &view.job;
    if job.id == args.job {
        print(&format!("job {} is {}", job.id, job.state))
    } else {
        print(&format!("the recipe has changed: that is job {} ({})", job.id, job.state))
    }
}

pub fn reload(global: &Global) -> anyhow::Result<()> {
    let reloaded = global.client()?.ask(&api::RELOAD, &(), &())?;
    for warning in &reloaded.warnings {
        eprintln!("finetune: {warning}");
    }
    print(&format!("reloaded {}", reloaded.config_file.map_or("the defaults".into(), |file| display(&file))))
}
