//! A job from the command line.

use std::path::Path;

use finetuned_engine::ErrorKind;
use finetuned_engine::recipe::{self, Recipe};

use super::Control;
use crate::api::{Submission, Submitted};
use crate::config::Config;
use crate::error::{Context, Error, Result};
use crate::inbox::{recipe as inbox_recipe, snapshot};
use crate::plugins::{Crashes, Finder};
use crate::store::NewJob;
use crate::supervisor::Command;

impl Control {
    /// Copies and hashes the data, and makes the job.
    ///
    /// # Errors
    /// The data cannot be read, or the recipe has a mistake.
    pub async fn submit(&self, submission: Submission) -> Result<Submitted> {
        let config = self.config();
        let crashes = self.parts.store.read(|store| store.plugin_crashes()).await?;
        let new = tokio::task::spawn_blocking(move || job_of(&submission, &config, &crashes)).await??;
        let (job, is_new) = self.parts.store.write(move |store| store.claim(&new)).await?;
        self.tell(Command::Wake).await;
        Ok(Submitted { job: job.into(), is_new })
    }
}

fn job_of(submission: &Submission, config: &Config, crashes: &Crashes) -> Result<NewJob> {
    let mut merged = config.recipe.clone();
    recipe::merge(&mut merged, &submission.recipe);
    let recipe = Recipe::from_table(&merged)?;
    let plugins = Finder::of(config).resolve(&recipe, crashes)?;
    let data = take(&submission.data, config)?;
    let validation = submission.validation.as_deref().map(|path| take(path, config)).transpose()?;
    let stem = submission.data.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let validation_sha256 = validation.as_ref().map(|v| v.sha256.as_str());
    let adapter = submission.adapter.as_deref();
    Ok(NewJob {
        key: inbox_recipe::key(&data.sha256, validation_sha256, adapter, &recipe, &plugins),
        name: submission.name.clone().or(stem).unwrap_or_else(|| "data".into()),
        data: data.path,
        validation: validation.map(|v| v.path),
        data_sha256: data.sha256,
        recipe,
        adapter: submission.adapter.clone(),
        plugins,
        outputs: config.adapters_dir(),
    })
}

fn take(path: &Path, config: &Config) -> Result<snapshot::Snapshot> {
    if !path.is_absolute() {
        return Err(Error::bad_input(format!("{}: an absolute path is needed", path.display())));
    }
    let mut file = std::fs::File::open(path)
        .with_context(|| format!("the daemon cannot open {}", path.display()))
        .map_err(|error| error.of_kind(ErrorKind::BadInput))?;
    if !file.metadata()?.is_file() {
        return Err(Error::bad_input(format!("{} is not a regular file", path.display())));
    }
    snapshot::take(&mut file, path, &config.datasets_dir(), config.inbox.snapshot_limit.unwrap_or(u64::MAX))
}
