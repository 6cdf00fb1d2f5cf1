//! The watched folders. One scan looks at everything and decides, for each
//! dataset at rest, once: train it, it is trained already, or refuse it.

mod complete;
mod listing;
mod names;
pub mod receipt;
pub mod recipe;
mod settle;
pub mod snapshot;
pub mod watch;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::config::{After, Config, InboxConfig};
use crate::filesystem::{needs_polling, open_beneath};
use crate::lock::lock;
use crate::plugins::{Finder, Pinned};
use crate::store::{Decision, FileRow, NewJob, State, Store};

use listing::{Candidate, Remark};
use settle::Settling;

/// Where a claim puts what it makes, and what it starts from.
#[derive(Debug, Clone)]
pub struct Claims {
    pub inbox: InboxConfig,
    pub recipe: toml::Table,
    pub datasets: PathBuf,
    pub outputs: PathBuf,
    pub plugins: Finder,
}

impl Claims {
    pub fn of(config: &Config) -> Claims {
        Claims {
            inbox: config.inbox.clone(),
            recipe: config.recipe.clone(),
            datasets: config.datasets_dir(),
            outputs: config.adapters_dir(),
            plugins: Finder::of(config),
        }
    }
}

/// What `finetune status` tells of an inbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InboxStatus {
    pub path: PathBuf,
    /// `false`: the folder is not there (an unmounted disk), which says nothing
    /// about its datasets.
    pub available: bool,
    pub waiting: Vec<Waiting>,
}

/// A file or folder that is not started, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    pub path: PathBuf,
    pub why: String,
}

/// What a scan did.
#[derive(Debug, Default)]
pub struct Scan {
    pub statuses: Vec<InboxStatus>,
    pub new_jobs: Vec<i64>,
    /// When there will be something to decide, if nothing else happens.
    pub again_in: Option<Duration>,
}

pub struct Inbox {
    claims: Claims,
    store: Arc<Mutex<Store>>,
    settling: HashMap<PathBuf, Settling>,
    /// What was written about folders that wait, so as not to rewrite it.
    remarked: HashMap<PathBuf, String>,
}

/// What became of one candidate in one scan.
enum Outcome {
    /// Nothing to do.
    Decided,
    Waits {
        why: String,
        look_again: Duration,
    },
    NewJob(i64),
}

impl Inbox {
    pub fn new(claims: Claims, store: Arc<Mutex<Store>>) -> Inbox {
        Inbox { claims, store, settling: HashMap::new(), remarked: HashMap::new() }
    }

    /// A reloaded configuration; what is known of the files stays.
    pub fn reconfigure(&mut self, claims: Claims) {
        self.claims = claims;
    }

    pub fn paths(&self) -> &[PathBuf] {
        &self.claims.inbox.paths
    }

    /// Looks at everything. `now` is the time since any fixed moment.
    pub fn scan(&mut self, now: Duration) -> Scan {
        let mut scan = Scan::default();
        for inbox in self.claims.inbox.paths.clone() {
            let status = self.scan_one(&inbox, now, &mut scan);
            scan.statuses.push(status);
        }
        scan
    }

    fn scan_one(&mut self, inbox: &Path, now: Duration, scan: &mut Scan) -> InboxStatus {
        let mut status = InboxStatus { path: inbox.to_path_buf(), available: true, waiting: Vec::new() };
        let listing = match listing::list(inbox) {
            Ok(listing) => listing,
            Err(error) => {
                status.available = false;
                status
                    .waiting
                    .push(Waiting { path: PathBuf::new(), why: format!("the inbox is not available: {error}") });
                return status;
            }
        };
        let settle = if needs_polling(inbox) { self.claims.inbox.settle_network } else { self.claims.inbox.settle };
        let present: HashSet<&Path> = listing.candidates.iter().map(|c| c.path.as_path()).collect();
        self.settling.entry(inbox.to_path_buf()).or_default().retain(|path| present.contains(path));
        for candidate in &listing.candidates {
            let outcome = self.look(inbox, candidate, settle, now).unwrap_or_else(|error| Outcome::Waits {
                why: format!("{error:#}"),
                look_again: self.claims.inbox.scan_every,
            });
            match outcome {
                Outcome::Decided => {}
                Outcome::NewJob(id) => scan.new_jobs.push(id),
                Outcome::Waits { why, look_again } => {
                    status.waiting.push(Waiting { path: candidate.path.clone(), why });
                    scan.again_in = Some(scan.again_in.map_or(look_again, |before| before.min(look_again)));
                }
            }
        }
        for remark in listing.remarks {
            self.write_remark(inbox, &remark);
            status.waiting.push(Waiting { path: remark.path, why: remark.text });
        }
        status
    }

    fn look(
        &mut self,
        inbox: &Path,
        candidate: &Candidate,
        settle: Duration,
        now: Duration,
    ) -> anyhow::Result<Outcome> {
        let known = lock(&self.store).file(inbox, &candidate.path)?;
        if let Some(row) = &known
            && row.stamp == candidate.stamp
            // A recipe that comes after the claim counts through `retry` only.
            && (row.job.is_some() || row.companions == candidate.companions)
        {
            if self.claims.inbox.after == After::Move {
                self.move_ended(inbox, candidate, row)?;
            }
            return Ok(Outcome::Decided);
        }
        let looks = format!("{}|{}", candidate.stamp, candidate.companions);
        let settling = self.settling.entry(inbox.to_path_buf()).or_default();
        let quiet = settling.unchanged_for(&candidate.path, &looks, now);
        if quiet < settle {
            let look_again = settle - quiet + Duration::from_millis(20);
            return Ok(Outcome::Waits { why: "is still being written, or was just now".into(), look_again });
        }
        let row = FileRow {
            inbox: inbox.to_path_buf(),
            path: candidate.path.clone(),
            stamp: candidate.stamp.clone(),
            companions: candidate.companions.clone(),
            sha256: None,
            job: None,
            refused: None,
            receipt: candidate.receipt.clone(),
        };
        let effective = match recipe::effective(inbox, candidate, &self.claims.recipe) {
            Ok(effective) => effective,
            Err(why) => return self.refuse(row, why),
        };
        let crashes = lock(&self.store).plugin_crashes()?;
        let plugins = match self.claims.plugins.resolve(&effective.recipe, &crashes) {
            Ok(plugins) => plugins,
            Err(problem) => return self.refuse(row, effective.placed(&problem)),
        };
        if let Some(missing) = first_missing(inbox, &effective)? {
            let limit = self.claims.inbox.incomplete_after;
            if quiet < limit {
                let look_again = (limit - quiet).min(self.claims.inbox.scan_every);
                return Ok(Outcome::Waits { why: format!("looks incomplete: {missing}"), look_again });
            }
            return self
                .refuse(row, format!("{missing}, and it has not changed for {}", humantime::format_duration(limit)));
        }
        let new = self.claims.claim(inbox, &effective, plugins, &candidate.name())?;
        // What was copied is what was looked at, or it is looked at again.
        if current_looks(inbox, &candidate.path)?.as_deref() != Some(looks.as_str()) {
            return Ok(Outcome::Waits { why: "changed while it was read".into(), look_again: settle });
        }
        self.decide(row, new, known)
    }

    fn decide(&mut self, mut row: FileRow, new: NewJob, known: Option<FileRow>) -> anyhow::Result<Outcome> {
        row.sha256 = Some(content_hash(&new));
        let mut store = lock(&self.store);
        if let Some(known) = known
            && known.job.is_some()
            && known.sha256 == row.sha256
        {
            // Touched, or moved away and back: the same content under the same name.
            store.restamp(&row.inbox, &row.path, &row.stamp)?;
            return Ok(Outcome::Decided);
        }
        let decided = store.decide(&row, &Decision::Train(Box::new(new)))?;
        let Some((id, is_new)) = decided else { return Ok(Outcome::Decided) };
        if let Some(job) = store.job(id)? {
            receipt::rewrite(&store, &job);
            let word = if is_new { "is" } else { "has the data and the recipe of" };
            tracing::info!(job = id, "{} {word} job {id}", row.path.display());
        }
        Ok(if is_new { Outcome::NewJob(id) } else { Outcome::Decided })
    }

    fn refuse(&mut self, row: FileRow, why: String) -> anyhow::Result<Outcome> {
        tracing::warn!("{} is refused: {why}", row.path.display());
        let mut store = lock(&self.store);
        store.decide(&row, &Decision::Refuse(why.clone()))?;
        let refused = FileRow { refused: Some(why), ..row };
        let text = receipt::render(&refused, None, false, store.now_ms());
        if let Err(error) = receipt::write(&refused.inbox, &refused.receipt, &text) {
            tracing::warn!("receipt of {}: {error:#}", refused.path.display());
        }
        Ok(Outcome::Decided)
    }

    fn write_remark(&mut self, inbox: &Path, remark: &Remark) {
        let Some(receipt) = &remark.receipt else { return };
        let path = inbox.join(receipt);
        if self.remarked.get(&path) == Some(&remark.text) {
            return;
        }
        let text = receipt::remark(&remark.path, &remark.text, lock(&self.store).now_ms());
        match receipt::write(inbox, receipt, &text) {
            Ok(()) => {
                self.remarked.insert(path, remark.text.clone());
            }
            Err(error) => tracing::warn!("receipt of {}: {error:#}", remark.path.display()),
        }
    }

    /// `after = "move"`: the source of an ended job goes to `_done/` or
    /// `_failed/`, under the name it had.
    fn move_ended(&self, inbox: &Path, candidate: &Candidate, row: &FileRow) -> anyhow::Result<()> {
        let Some(id) = row.job else { return Ok(()) };
        let Some(job) = lock(&self.store).job(id)? else { return Ok(()) };
        let folder = match job.state {
            State::Succeeded => names::DONE,
            State::Failed | State::Cancelled => names::FAILED,
            _ => return Ok(()),
        };
        let sidecar =
            candidate.recipes.iter().filter(|path| path.file_name().is_some_and(|name| name != listing::RECIPE_FILE));
        let moved = if candidate.is_folder {
            vec![&candidate.path]
        } else {
            std::iter::once(&candidate.path).chain(sidecar).collect()
        };
        for path in moved {
            let target = free_name(&inbox.join(folder).join(path));
            let parent = target.parent().context("a moved file has a folder")?;
            std::fs::create_dir_all(parent)?;
            std::fs::rename(inbox.join(path), &target)
                .with_context(|| format!("cannot move {} to {folder}/", path.display()))?;
        }
        Ok(())
    }
}

impl Claims {
    /// The job that trains `effective`: its data is copied and hashed.
    ///
    /// # Errors
    /// Reading the source, writing the copy.
    pub fn claim(
        &self,
        inbox: &Path,
        effective: &recipe::Effective,
        plugins: Vec<Pinned>,
        name: &str,
    ) -> anyhow::Result<NewJob> {
        let data = self.snapshot(inbox, &effective.data)?;
        let validation = effective.validation.as_deref().map(|path| self.snapshot(inbox, path)).transpose()?;
        let held_out = validation.as_ref().map(|v| v.sha256.as_str());
        let key = recipe::key(&data.sha256, held_out, None, &effective.recipe, &plugins);
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

    fn snapshot(&self, inbox: &Path, path: &Path) -> anyhow::Result<snapshot::Snapshot> {
        let mut file = open_beneath(inbox, path).with_context(|| path.display().to_string())?;
        snapshot::take(&mut file, &inbox.join(path), &self.datasets, self.inbox.snapshot_limit.unwrap_or(u64::MAX))
    }

    /// `retry` looks at the recipe again: the sidecar may be new. Returns the job
    /// that a changed recipe makes, and writes it down as the file's own.
    ///
    /// # Errors
    /// The recipe has a mistake; the database.
    pub fn reclaim(&self, store: &mut Store, job: i64) -> anyhow::Result<Option<i64>> {
        for row in store.files_of_job(job)? {
            let Ok(listing) = listing::list(&row.inbox) else { continue };
            let Some(candidate) = listing.candidates.into_iter().find(|c| c.path == row.path && c.stamp == row.stamp)
            else {
                continue;
            };
            if candidate.companions == row.companions {
                continue;
            }
            let effective = recipe::effective(&row.inbox, &candidate, &self.recipe).map_err(anyhow::Error::msg)?;
            let plugins = self
                .plugins
                .resolve(&effective.recipe, &store.plugin_crashes()?)
                .map_err(|problem| anyhow::anyhow!(effective.placed(&problem)))?;
            let new = self.claim(&row.inbox, &effective, plugins, &candidate.name())?;
            let row = FileRow { companions: candidate.companions, sha256: Some(content_hash(&new)), ..row };
            if let Some((id, _)) = store.decide(&row, &Decision::Train(Box::new(new)))?
                && id != job
            {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }
}

/// The data's hash, with the validation file's behind it where there is one.
fn content_hash(new: &NewJob) -> String {
    match &new.validation {
        // A snapshot's folder is its hash.
        Some(path) => format!("{} {}", new.data_sha256, path.display()),
        None => new.data_sha256.clone(),
    }
}

fn first_missing(inbox: &Path, effective: &recipe::Effective) -> anyhow::Result<Option<String>> {
    for path in std::iter::once(&effective.data).chain(&effective.validation) {
        let mut file = open_beneath(inbox, path).with_context(|| path.display().to_string())?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(missing) =
            complete::what_is_missing(&name, &mut file).with_context(|| path.display().to_string())?
        {
            return Ok(Some(missing));
        }
    }
    Ok(None)
}

fn current_looks(inbox: &Path, path: &Path) -> anyhow::Result<Option<String>> {
    let listing = listing::list(inbox)?;
    let candidate = listing.candidates.into_iter().find(|candidate| candidate.path == path);
    Ok(candidate.map(|candidate| format!("{}|{}", candidate.stamp, candidate.companions)))
}

/// `a.jsonl`, or `a.jsonl.2` where that is taken.
fn free_name(path: &Path) -> PathBuf {
    let mut free = path.to_path_buf();
    let mut number = 2;
    while free.exists() {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{number}"));
        free = path.with_file_name(name);
        number += 1;
    }
    free
}

#[cfg(test)]
mod tests;
