//! `finetune demo`: the whole product on a sample dataset, the real daemon
//! included.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use finetuned_engine::Plan;
use finetuned_engine::generate::{GenerateOptions, Generator, Message};
use indicatif::ProgressBar;

use crate::api::{self, JobView};
use crate::config::{Config, Sources};
use crate::filesystem::display;
use crate::foreground::{Style, bar, step_words, summary_lines};
use crate::http::client::Client;
use crate::report::{self, Page, Sample};
use crate::store::{EventRow, JobQuery, Progress, State};
use crate::{models, sample, words};

#[derive(Args)]
#[command(after_help = "\
It fetches a model of 135 million parameters, starts the daemon on a temporary folder,
drops a sample dataset into its inbox, shows the run, and lets the model answer before
and after. Some minutes on two cores.")]
/// The flags of `finetune demo`.
pub struct DemoArgs {
    /// Another base model
    #[arg(long, value_name = "MODEL", default_value = "smollm2-135m-instruct")]
    model: String,
    /// Where the daemon keeps its state [default: a new temporary folder]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Set a key of the recipe: --set train.steps=20
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// How long the daemon may take to answer for the first time.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs the demo.
///
/// # Errors
/// The model cannot be had, or the daemon or its job fails.
pub fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let begin = Instant::now();
    // A model that is fetched here serves the user's own runs later.
    let own = Config::load(&Sources::of_process(None, Vec::new()));
    let models_dir =
        own.map(|config| config.models_dir).unwrap_or_else(|_| std::env::temp_dir().join("finetuned-models"));
    let model = models::find_or_pull(&args.model, &models_dir, &mut |words| eprintln!("{words}"))?;
    println!("base model  {}", display(&model));

    let state = state_folder(args)?;
    let model = std::path::absolute(&model)?;
    std::fs::write(state.join("finetuned.toml"), configuration(&model, &args.set)?)?;
    let mut daemon = Daemon::start(&state)?;
    let client = daemon.wait(&state)?;
    println!("daemon      process {}, state in {}", daemon.child.id(), display(&state));

    let inbox = state.join("inbox");
    let dropped = inbox.join(sample::FILE_NAME);
    // As a careful copy does it: under another name, then renamed.
    std::fs::write(inbox.join(".copying"), sample::DATASET)?;
    std::fs::rename(inbox.join(".copying"), &dropped)?;
    println!(
        "dropped     {} ({} rows: {})\n",
        display(&dropped),
        sample::DATASET.lines().count(),
        sample::WHAT_IT_TEACHES
    );

    let (job, plan) = follow(&client, &mut daemon)?;
    anyhow::ensure!(
        job.job.state == State::Succeeded,
        "the job is {}: {}",
        job.job.state,
        job.job.error.unwrap_or_default()
    );
    let job = job.job;
    daemon.stop();

    let samples = answers(&model, &job.out)?;
    for sample in &samples {
        println!("\n> {}", sample.prompt.replace('\n', "\n  "));
        println!("  before  {}", sample.before.trim().replace('\n', "\n          "));
        println!("  after   {}", sample.after.trim().replace('\n', "\n          "));
    }
    let summary = job.summary.context("a finished job has a summary")?;
    println!("\n{}", summary_lines(&summary, &job.out));
    println!("receipt        {}", display(&inbox.join("_receipts").join(format!("{}.txt", job.name))));
    let page = Page {
        title: sample::FILE_NAME.into(),
        base: args.model.clone(),
        recipe: job.recipe,
        summary,
        dataset: job.report,
        plan,
        metrics: report::read_metrics(&job.out),
        samples,
    };
    report::write(&job.out, &page)?;
    println!("\nthe whole demo took {}. Now with your own data:", words::seconds(begin.elapsed().as_secs_f64()));
    println!("  finetuned                                  the daemon, in the foreground");
    println!("  cp support.jsonl ~/finetuned/inbox/");
    println!("  finetune status                            and: finetune logs -f");
    if let Some(idle) = crate::devices::idle_gpu() {
        println!("\n{idle}\n");
    }
    println!("or let this one answer:\n  finetune generate --model {} --adapter {}", args.model, display(&job.out));
    Ok(())
}

fn state_folder(args: &DemoArgs) -> anyhow::Result<PathBuf> {
    match &args.state_dir {
        Some(path) => {
            std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
            Ok(std::path::absolute(path)?)
        }
        // It stays: the adapter in it is what the demo is about.
        None => Ok(tempfile::Builder::new().prefix("finetuned-demo-").tempdir()?.keep()),
    }
}

/// The demo daemon's configuration: only what differs from the defaults.
fn configuration(model: &Path, set: &[String]) -> anyhow::Result<String> {
    let mut recipe: toml::Table = sample::RECIPE.parse()?;
    recipe.insert("base".into(), model.display().to_string().into());
    for assignment in set {
        finetuned_engine::recipe::set(&mut recipe, assignment)?;
    }
    let mut table: toml::Table = "state_dir = \".\"\n[inbox]\nsettle = \"1s\"\n[log]\nlevel = \"warn\"\n".parse()?;
    table.insert("recipe".into(), recipe.into());
    Ok(toml::to_string(&table)?)
}

/// The daemon as a child, stopped when the demo ends in whatever way.
struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    fn start(state: &Path) -> anyhow::Result<Daemon> {
        let log = state.join("daemon.log");
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("daemon").arg("--config").arg(state.join("finetuned.toml")).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&log)?);
        // The demo's file alone counts.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FINETUNED_") {
                command.env_remove(name);
            }
        }
        Ok(Daemon { child: command.spawn().context("the daemon cannot be started")?, log })
    }

    fn wait(&mut self, state: &Path) -> anyhow::Result<Client> {
        let client = Client::new(&state.join("finetuned.sock"))?;
        let begin = Instant::now();
        while client.ask(&api::HEALTH, &(), &()).is_err() {
            self.check()?;
            anyhow::ensure!(
                begin.elapsed() < START_TIMEOUT,
                "the daemon does not answer; its words are in {}",
                self.log.display()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(client)
    }

    fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let words = std::fs::read_to_string(&self.log).unwrap_or_default();
            anyhow::bail!("the daemon ended ({status}): {}", words.trim());
        }
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32)
            && matches!(self.child.try_wait(), Ok(None))
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Shows the job until it ends; with it comes the plan it was started with.
fn follow(client: &Client, daemon: &mut Daemon) -> anyhow::Result<(JobView, Option<Plan>)> {
    let id = loop {
        daemon.check()?;
        if let Some(view) = client.ask(&api::JOBS, &JobQuery::default(), &())?.first() {
            break view.job.id;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let mut shown = Shown {
        bar: ProgressBar::hidden(),
        progress: Progress::default(),
        style: Style::of_terminal(),
        last: None,
        plan: None,
    };
    client.follow(Some(id), &mut |line| {
        if let Ok(row) = serde_json::from_str::<EventRow>(line) {
            shown.show(&row);
        }
        true
    })?;
    shown.bar.finish_and_clear();
    // The stream ends with the job; its row may be a moment behind.
    let begin = Instant::now();
    loop {
        daemon.check()?;
        let view = client.ask_of(&api::JOB, id, &(), &())?;
        if view.job.state.is_ended() || begin.elapsed() > Duration::from_secs(10) {
            return Ok((view, shown.plan));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

struct Shown {
    bar: ProgressBar,
    progress: Progress,
    style: Style,
    last: Option<Instant>,
    plan: Option<Plan>,
}

impl Shown {
    fn show(&mut self, row: &EventRow) {
        let mut body = row.body.clone();
        if let Some(map) = body.as_object_mut() {
            map.insert("event".into(), row.kind.clone().into());
        }
        let Ok(event) = serde_json::from_value::<finetuned_engine::Event>(body) else { return };
        self.progress.apply(&event);
        use finetuned_engine::Event;
        match event {
            Event::Phase { name } => self.say(&name),
            Event::Prepared { report } => self.say(&format!(
                "{}: {} rows, {} tokens, {} of them trained",
                report.format, report.used, report.tokens, report.trained_tokens
            )),
            Event::Planned { plan } => {
                self.say(&format!("{} at the peak", words::bytes(plan.peak_bytes)));
                self.plan = Some(*plan);
            }
            Event::Started { total_steps, .. } if self.style == Style::Bar => self.bar = bar(total_steps as u64),
            Event::Validation { step, loss, .. } => self.say(&format!("validation loss after step {step}: {loss:.4}")),
            Event::Step(metrics) => {
                let left = self.progress.seconds_left().unwrap_or_default();
                let line = step_words(metrics.loss, self.progress.validation_loss, metrics.tokens_per_second, left);
                self.bar.set_position(metrics.step as u64);
                self.bar.set_message(line.clone());
                let due = self.last.is_none_or(|last| last.elapsed() > Duration::from_secs(2));
                if self.style == Style::Lines && (due || metrics.step == self.progress.total_steps) {
                    self.last = Some(Instant::now());
                    println!("step {}/{}  {line}", metrics.step, self.progress.total_steps);
                }
            }
            Event::Note { message } => self.say(&format!("note: {message}")),
            _ => {}
        }
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| println!("{text}"));
    }
}

/// The same prompts with the adapter off and on.
fn answers(model: &Path, adapter: &Path) -> anyhow::Result<Vec<Sample>> {
    let mut generator = Generator::open(model, Some(adapter), "cpu", None)?;
    let options = GenerateOptions { max_tokens: sample::MOST_TOKENS, temperature: 0.0, top_k: 0, top_p: 1.0, seed: 42 };
    let mut samples = Vec::new();
    for prompt in sample::prompts() {
        let conversation = [Message::user(prompt.as_str())];
        let mut answer = |on: bool| -> anyhow::Result<String> {
            generator.set_adapter(on);
            Ok(generator.generate(&conversation, &options, &mut |_| true)?.text)
        };
        let (before, after) = (answer(false)?, answer(true)?);
        samples.push(Sample { prompt, before, after });
    }
    Ok(samples)
}
