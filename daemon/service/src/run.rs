//! One run from its request to its report: the code that a worker and the
//! foreground command share.

use std::time::Duration;

use finetuned_data::DatasetReport;
use finetuned_engine::{Control, ErrorKind, Event, Observer, Outcome, Plan};
use finetuned_plugin_api::abi::calls;

use crate::error::{Context, Error, Result};
use crate::inbox::snapshot;
use crate::process::limit_memory;
use crate::protocol::RunRequest;
use crate::{devices, models, plugins, report, words};

/// Finds the base model (and fetches it if it is in the catalogue and not
/// here), trains, and writes the HTML report beside what was trained.
///
/// # Errors
/// Whatever keeps the run from finishing; what is in `out` stays.
pub fn execute(run: &RunRequest, observer: &mut dyn Observer) -> Result<Outcome> {
    if let Some(limit) = run.memory_bytes {
        limit_memory(limit)?;
    }
    if let Some(sha256) = &run.verify_sha256 {
        observer.event(&Event::Phase { name: "verifying the dataset".into() });
        snapshot::verify(&run.train.data, sha256)?;
    }
    let mut request = run.train.clone();
    if !request.plugins.is_empty() {
        for library in &request.plugins {
            plugins::verify(library)?;
        }
        if let Some(limits) = run.plugin_limits {
            let memory_bytes = limits.memory_bytes.unwrap_or(u64::MAX);
            calls::watch(calls::Limits { time: Duration::from_secs_f64(limits.seconds), memory_bytes })?;
        }
    }
    models::locate_base(&mut request.recipe, &run.models_dir, &mut |words| {
        observer.event(&Event::Phase { name: words.to_string() });
    })?;
    if let Some(file) = &run.devices_file {
        request.device = devices::trusted(&request.device, file, observer)?;
    }
    let mut seen = Seen { observer, limit: run.memory_bytes, dataset: None, plan: None, too_large: None };
    let outcome = finetuned_engine::train(&request, &mut seen)?;
    if let Some(why) = seen.too_large {
        return Err(Error::new(ErrorKind::OutOfMemory, why));
    }
    if let Outcome::Finished(summary) | Outcome::AlreadyFinished(summary) = &outcome {
        let path = request.out.join(report::FILE);
        let finished_before = matches!(outcome, Outcome::AlreadyFinished(_));
        if !(finished_before && path.exists()) {
            let page = report::Page {
                title: run
                    .train
                    .data
                    .file_name()
                    .map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned()),
                base: run.train.recipe.base.clone(),
                recipe: run.train.recipe.clone(),
                summary: (**summary).clone(),
                dataset: seen.dataset,
                plan: seen.plan,
                metrics: report::read_metrics(&request.out),
                samples: Vec::new(),
            };
            report::write(&request.out, &page).context("the run is finished, but not its report")?;
        }
    }
    Ok(outcome)
}

/// Passes everything on and keeps what the report shows.
struct Seen<'a> {
    observer: &'a mut dyn Observer,
    /// Most memory of this process.
    limit: Option<u64>,
    dataset: Option<DatasetReport>,
    plan: Option<Plan>,
    /// The plan needs more than the limit: why the run ends before its first step.
    /// The kernel's limit would only let an allocation fail.
    too_large: Option<String>,
}

impl Observer for Seen<'_> {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Prepared { report } => self.dataset = Some((**report).clone()),
            Event::Planned { plan } => {
                self.plan = Some((**plan).clone());
                let needed = plan.host_bytes();
                self.too_large = self.limit.filter(|&limit| needed > limit).map(|limit| {
                    format!(
                        "needs {} of memory, workers.memory allows {}: lower train.micro_batch_size or train.sequence_length, set train.gradient_checkpointing, or use method = \"qlora\"",
                        words::bytes(needed),
                        words::bytes(limit)
                    )
                });
            }
            _ => {}
        }
        self.observer.event(event);
    }

    fn control(&mut self) -> Control {
        let wish = self.observer.control();
        if self.too_large.is_some() { Control::Cancel } else { wish }
    }
}
