//! A run from request to finished files: what the worker and `finetune train`
//! call.

pub mod checkpoint;
mod finish;
pub mod identity;
pub mod metrics;
pub mod output;
mod session;
mod steps;
mod validation;

use std::fs::File;
use std::path::Path;

use self::checkpoint::Progress;
use self::identity::{Identity, RunFile};
use self::metrics::MetricsFile;
use self::session::Begin;
use crate::base::BaseModel;
use crate::error::EngineError;
use crate::recipe::Recipe;
use crate::train::order::Order;
use crate::train::schedule::learning_rate;
use crate::train::step::Trainer;
use crate::vocabulary::{Event, Observer, Outcome, TrainRequest};
use crate::{dataset, plugins};

/// Trains, or resumes the same run if `request.out` holds it.
///
/// # Errors
/// Whatever keeps the run from finishing; `out` keeps its last checkpoint.
pub fn train(request: &TrainRequest, observer: &mut dyn Observer) -> Result<Outcome, EngineError> {
    let out = &request.out;
    std::fs::create_dir_all(out).map_err(EngineError::io(out))?;
    let _lock = lock(out)?;
    if request.fresh {
        checkpoint::clear(out);
        RunFile::remove(out)?;
    }
    phase(observer, "reading the model");
    let base = BaseModel::open(Path::new(&request.recipe.base))?;
    phase(observer, "reading the dataset");
    let prepared = dataset::read(request, &base)?;
    observer.event(&Event::Prepared { report: Box::new(prepared.report.clone()) });
    let identity = Identity::of(request, &base.files, &prepared.report)?;
    let registry = plugins::registry(&request.plugins)?;
    let plugins = plugins::used::used(&request.recipe, &registry, &request.plugins)?;
    let found = RunFile::read(out)?;
    if let Some(run) = &found {
        if let Some(difference) = run.identity.difference(&identity) {
            return Err(EngineError::OtherRun { out: out.clone(), difference });
        }
        if !request.accept_plugin_change {
            plugins::used::refuse_change(&run.plugins, &plugins)?;
        }
        if let Some(summary) = &run.summary {
            return Ok(Outcome::AlreadyFinished(Box::new(summary.clone())));
        }
    }
    let begin = Begin { identity, plugins, found };
    let run = Run::open(request, &registry, &base, &prepared, begin, observer)?;
    run.train(request, &base, &prepared, observer)
}

/// A run whose model is loaded and, if there is a checkpoint, restored.
struct Run {
    trainer: Trainer,
    order: Order,
    total_steps: usize,
    warmup: usize,
    progress: Progress,
    metrics: MetricsFile,
    file: RunFile,
}

impl Run {
    /// The learning rate of a step, from 1.
    fn learning_rate(&self, recipe: &Recipe, step: usize) -> f64 {
        learning_rate(recipe.train.schedule, recipe.learning_rate(), self.warmup, step, self.total_steps)
    }

    /// Records that memory ran short, so that a resumed run begins with what
    /// fits.
    fn keep_micro_batch(
        &mut self,
        request: &TrainRequest,
        now: usize,
        observer: &mut dyn Observer,
    ) -> Result<(), EngineError> {
        let before = self.file.micro_batch_size;
        if now == before {
            return Ok(());
        }
        self.file.micro_batch_size = now;
        self.file.write(&request.out)?;
        let message = format!(
            "memory ran short: micro-batches of {now} instead of {before} from here on; the batch stays the same"
        );
        observer.event(&Event::Note { message });
        Ok(())
    }
}

fn numbers(metrics: &[(String, f64)]) -> impl Iterator<Item = (String, serde_json::Value)> + '_ {
    metrics.iter().map(|(name, value)| (name.clone(), (*value).into()))
}

fn phase(observer: &mut dyn Observer, name: &str) {
    observer.event(&Event::Phase { name: name.to_string() });
}

/// Locks the folder: a second process would tear the files of the first.
fn lock(out: &Path) -> Result<File, EngineError> {
    let path = out.join("run.lock");
    let file = File::create(&path).map_err(EngineError::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(EngineError::Busy { path }),
        Err(std::fs::TryLockError::Error(source)) => Err(EngineError::Io { path, source }),
    }
}
