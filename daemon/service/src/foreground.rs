//! A run in the foreground: a progress bar on a terminal, plain lines elsewhere,
//! and Ctrl-C as a wish to stop at a checkpoint.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use finetuned_engine::{Control, Event, Observer, Summary};
use indicatif::{ProgressBar, ProgressStyle};

use crate::filesystem::display;
use crate::{report, results, words};

/// Plain lines come no more often, unless something is measured.
const PLAIN_EVERY: Duration = Duration::from_secs(2);

/// How a run is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A progress bar.
    Bar,
    /// Plain lines.
    Lines,
    /// Events on stdout, for tools.
    Json,
}

impl Style {
    /// A bar on a terminal, lines elsewhere.
    pub fn of_terminal() -> Style {
        if std::io::stderr().is_terminal() { Style::Bar } else { Style::Lines }
    }
}

/// Shows a run, and takes Ctrl-C.
pub struct Console {
    style: Style,
    bar: ProgressBar,
    total: usize,
    last_line: Option<Instant>,
    seconds_per_step: Option<f64>,
    validation: Option<f64>,
    interrupts: Arc<AtomicUsize>,
    told: bool,
}

impl Console {
    /// Also takes over Ctrl-C and SIGTERM: the first stops at a checkpoint, the
    /// second ends without.
    pub fn new(style: Style) -> Console {
        let interrupts = Arc::new(AtomicUsize::new(0));
        count_interrupts(interrupts.clone());
        Console {
            style,
            bar: ProgressBar::hidden(),
            total: 0,
            last_line: None,
            seconds_per_step: None,
            validation: None,
            interrupts,
            told: false,
        }
    }

    fn say(&self, text: &str) {
        match self.style {
            Style::Bar => self.bar.suspend(|| eprintln!("{text}")),
            Style::Lines => eprintln!("{text}"),
            Style::Json => {}
        }
    }

    fn start_bar(&mut self, total: usize, from: usize) {
        self.total = total;
        if self.style == Style::Bar {
            self.bar = bar(total as u64);
            self.bar.set_position(from as u64);
        }
        if from > 0 {
            self.say(&format!("goes on after step {from} of {total}"));
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A bar of steps, as the demo and `train` draw it.
pub fn bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}") {
        bar.set_style(style);
    }
    bar
}

impl Observer for Console {
    fn event(&mut self, event: &Event) {
        if self.style == Style::Json {
            if let Ok(line) = serde_json::to_string(event) {
                let _ = writeln!(std::io::stdout(), "{line}");
            }
            return;
        }
        match event {
            Event::Phase { name } => self.say(name),
            Event::Prepared { report } => self.say(&format!(
                "{}: {} rows used of {}, {} tokens, {} trained{}",
                report.format,
                report.used,
                report.rows,
                words::count(report.tokens as u64),
                words::count(report.trained_tokens as u64),
                if report.bad_row_count > 0 {
                    format!(", {} bad rows (finetune data check)", report.bad_row_count)
                } else {
                    String::new()
                }
            )),
            Event::Planned { plan } => self.say(&format!(
                "{} at the peak, about {}",
                words::bytes(plan.peak_bytes),
                words::seconds(plan.total_seconds)
            )),
            Event::Started { total_steps, resumed_from } => self.start_bar(*total_steps, *resumed_from),
            Event::Step(metrics) => {
                let before = self.seconds_per_step.unwrap_or(metrics.seconds);
                let pace = 0.8 * before + 0.2 * metrics.seconds;
                self.seconds_per_step = Some(pace);
                self.validation = metrics.validation_loss.or(self.validation);
                let left = pace * self.total.saturating_sub(metrics.step) as f64;
                let line = step_words(metrics.loss, self.validation, metrics.tokens_per_second, left);
                self.bar.set_position(metrics.step as u64);
                self.bar.set_message(line.clone());
                let due = self.last_line.is_none_or(|last| last.elapsed() >= PLAIN_EVERY);
                if self.style == Style::Lines
                    && (due || metrics.validation_loss.is_some() || metrics.step == self.total)
                {
                    self.last_line = Some(Instant::now());
                    eprintln!("step {}/{}  {line}", metrics.step, self.total);
                }
            }
            Event::Validation { step, loss, .. } => {
                self.validation = Some(*loss);
                self.say(&format!("validation loss after step {step}: {loss:.4}"));
            }
            Event::Note { message } => self.say(&format!("note: {message}")),
            Event::Progress { .. } | Event::Checkpoint { .. } | Event::Finished(_) => {}
        }
    }

    fn control(&mut self) -> Control {
        match self.interrupts.load(Ordering::Relaxed) {
            0 => Control::Continue,
            1 => {
                if !std::mem::replace(&mut self.told, true) {
                    self.say("stopping at a checkpoint; Ctrl-C again ends at once");
                }
                Control::Stop
            }
            _ => Control::Cancel,
        }
    }
}

/// The text after the bar.
pub fn step_words(loss: f64, validation: Option<f64>, tokens_per_second: f64, seconds_left: f64) -> String {
    let validation = validation.map_or(String::new(), |loss| format!("  validation {loss:.4}"));
    format!("loss {loss:.4}{validation}  {tokens_per_second:.0} tok/s  {} left", words::seconds(seconds_left))
}

/// How a run ended, for people.
pub fn summary_lines(summary: &Summary, out: &Path) -> String {
    let mut text = format!(
        "{} steps, {} trained tokens in {}",
        summary.steps,
        words::count(summary.tally.trained_tokens),
        words::seconds(summary.tally.seconds)
    );
    if let (Some(before), Some(after)) = (summary.tally.validation_before, summary.validation_after) {
        text += &format!(
            "\nvalidation loss  {before:.4} before, {after:.4} after ({:.0}% lower)",
            100.0 * (before - after) / before
        );
    }
    let learnt = results::lines(summary, 15);
    if !learnt.is_empty() {
        text += &format!("\n{}", learnt.trim_end());
    }
    if let Some(last) = summary.tally.last_loss {
        text += &format!("\ntraining loss  {last:.4} at the last step");
    }
    if summary.tally.stopped_early {
        text += &format!("\nstopped early  the weights are those of step {}", summary.kept_step);
    }
    text += &format!(
        "\npeak memory    {}\noutput         {}\nreport         {}",
        words::bytes(summary.peak_bytes),
        display(out),
        display(&out.join(report::FILE))
    );
    text
}

fn count_interrupts(count: Arc<AtomicUsize>) {
    use tokio::signal::unix::{SignalKind, signal};
    // Without a runtime the signals keep their usual meaning.
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    std::thread::spawn(move || {
        runtime.block_on(async {
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                // A step may be long: the third does not wait for its end.
                if count.fetch_add(1, Ordering::Relaxed) >= 2 {
                    std::process::exit(130);
                }
            }
        });
    });
}
