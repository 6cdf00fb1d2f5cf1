//! A claim: a dataset is copied and hashed, and with its recipe becomes a job.

use std::path::{Path, PathBuf};

use super::recipe::{self, Effective};
use super::{listing, snapshot};
use crate::config::{Config, InboxConfig};
use crate::error::{Context, Result};
use crate::filesystem::open_beneath;
use crate::plugins::{Finder, Pinned};
use crate::store::{Decision, FileRow, NewJob, StoreHandle};

/// What a claim starts from, and where it puts what it makes.
#[derive(Debug, Clone)]
pub struct Claims {
    /// How the inboxes are watched.
    pub inbox: InboxConfig,
    /// The lowest layer of every recipe.
    pub recipe: toml::Table,
    /// Snapshots by hash.
    pub datasets: PathBuf,
    /// The parent of the jobs' output folders.
    pub outputs: PathBuf,
    /// Who finds the plugins that a recipe names.
    pub plugins: Finder,
}

impl Claims {
    /// As the configuration says.
    pub fn of(config: &Config) -> Claims {
        Claims {
            inbox: config.inbox.clone(),
            recipe: config.recipe.clone(),
            datasets: config.datasets_dir(),
            outputs: config.adapters_dir(),
            plugins: Finder::of(config),
        }
    }

    /// The job that trains `effective`: its data is copied and hashed.
    ///
    /// # Errors
    /// The source cannot be read, or the copy not written.
    pub fn claim(&self, inbox: &Path, effective: &Effective, plugins: Vec<Pinned>, name: &str) -> Result<NewJob> {
        let data = self.snapshot(inbox, &effective.data)?;
        let validation = effective.validation.as_deref().map(|path| self.snapshot(inbox, path)).transpose()?;
        let validation_sha256 = validation.as_ref().map(|v| v.sha256.as_str());
        let key = recipe::key(&data.sha256, validation_sha256, None, &effective.recipe, &plugins);
        Ok(NewJob {
            key,
            name: name.to_string(),
            data: data.path,
            validation: validation.map(|v| v.path),
            data_sha256: data.sha256,
            recipe: effective.recipe.clone(),
            adapter: None,
            plugins,
            outputs: self.outputs.clone(),
        })
    }

    fn snapshot(&self, inbox: &Path, path: &Path) -> Result<snapshot::Snapshot> {
        let mut file = open_beneath(inbox, path).with_context(|| path.display())?;
        snapshot::take(&mut file, &inbox.join(path), &self.datasets, self.inbox.snapshot_limit.unwrap_or(u64::MAX))
    }

    /// `retry` looks at the recipe again: the sidecar may be new. Returns the job
    /// that a changed recipe makes, and writes it down as the file's own. The
    /// database is asked between the copies, not during one.
    ///
    /// # Errors
    /// The recipe has a mistake, or the database fails.
    pub fn reclaim(&self, store: &StoreHandle, job: i64) -> Result<Option<i64>> {
        let (files, crashes) = store.read_now(move |store| Ok((store.files_of_job(job)?, store.plugin_crashes()?)))?;
        for row in files {
            let Ok(listing) = listing::list(&row.inbox) else { continue };
            let same = |candidate: &listing::Candidate| candidate.path == row.path && candidate.looks.data == row.stamp;
            let Some(candidate) = listing.candidates.into_iter().find(same) else { continue };
            if candidate.looks.companions == row.companions {
                continue;
            }
            let effective = recipe::effective(&row.inbox, &candidate, &self.recipe)?;
            let plugins =
                self.plugins.resolve(&effective.recipe, &crashes).map_err(|problem| effective.placed(problem))?;
            let new = self.claim(&row.inbox, &effective, plugins, &candidate.name())?;
            let row = FileRow { companions: candidate.looks.companions, sha256: Some(content_hash(&new)), ..row };
            let decided = store.write_now(move |store| store.decide(&row, &Decision::Train(Box::new(new))))?;
            if let Some((id, _)) = decided
                && id != job
            {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }
}

/// What a file's row remembers of its content: the data's hash, and the snapshot of
/// the validation file if there is one.
pub(super) fn content_hash(new: &NewJob) -> String {
    match &new.validation {
        // A snapshot's folder is its hash.
        Some(path) => format!("{} {}", new.data_sha256, path.display()),
        None => new.data_sha256.clone(),
    }
}
