//! The watched folders. One scan looks at everything and decides, for each
//! dataset at rest, once: train it, it is trained already, or refuse it.

mod claims;
mod listing;
mod names;
pub mod receipt;
mod receipts;
pub mod recipe;
mod settle;
pub mod snapshot;
mod thread;
mod watch;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use finetuned_data::DataError;
use finetuned_engine::EngineError;
use serde::{Deserialize, Serialize};

use crate::config::After;
use crate::error::{Context, Error, Result};
use crate::filesystem::{needs_polling, open_beneath};
use crate::store::{Decision, FileRow, NewJob, State, StoreHandle, wall_clock_ms};

pub use claims::Claims;
pub use receipts::Receipts;
pub use thread::InboxThread;

use claims::content_hash;
use listing::{Candidate, Remark};
use settle::{Looks, Settling};

/// What `finetune status` tells of an inbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InboxStatus {
    /// The folder.
    pub path: PathBuf,
    /// `false`: the folder is not there (an unmounted disk), which says nothing
    /// about its datasets.
    pub available: bool,
    /// What is not started.
    pub waiting: Vec<Waiting>,
}

/// A file or folder that is not started, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The folder.
    pub path: PathBuf,
    /// For people.
    pub why: String,
}

/// What a scan did.
#[derive(Debug, Default)]
pub struct Scan {
    /// Of each inbox.
    pub statuses: Vec<InboxStatus>,
    /// Their numbers.
    pub new_jobs: Vec<i64>,
    /// When there will be something to decide, if nothing else happens.
    pub again_in: Option<Duration>,
}

/// The watched folders, and what is known of their files.
pub struct Inbox {
    claims: Claims,
    store: StoreHandle,
    receipts: Receipts,
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
    /// Nothing is known of the files yet.
    pub fn new(claims: Claims, store: StoreHandle, receipts: Receipts) -> Inbox {
        Inbox { claims, store, receipts, settling: HashMap::new(), remarked: HashMap::new() }
    }

    /// A reloaded configuration; what is known of the files stays.
    pub fn reconfigure(&mut self, claims: Claims) {
        self.claims = claims;
    }

    /// The watched folders.
    pub fn paths(&self) -> &[PathBuf] {
        &self.claims.inbox.paths
    }

    /// The longest time between two scans.
    pub fn scan_every(&self) -> Duration {
        self.claims.inbox.scan_every
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
                why: error.to_string(),
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

    fn look(&mut self, inbox: &Path, candidate: &Candidate, settle: Duration, now: Duration) -> Result<Outcome> {
        let (at, path) = (inbox.to_path_buf(), candidate.path.clone());
        let known = self.store.read_now(move |store| store.file(&at, &path))?;
        if let Some(row) = &known
            && row.stamp == candidate.looks.data
            // A recipe that comes after the claim counts through `retry` only.
            && (row.job.is_some() || row.companions == candidate.looks.companions)
        {
            if self.claims.inbox.after == After::Move {
                self.move_ended(inbox, candidate, row)?;
            }
            return Ok(Outcome::Decided);
        }
        let settling = self.settling.entry(inbox.to_path_buf()).or_default();
        let quiet = settling.unchanged_for(&candidate.path, &candidate.looks, now);
        if quiet < settle {
            let look_again = settle - quiet + Duration::from_millis(20);
            return Ok(Outcome::Waits { why: "is still being written, or was just now".into(), look_again });
        }
        let row = FileRow {
            inbox: inbox.to_path_buf(),
            path: candidate.path.clone(),
            stamp: candidate.looks.data.clone(),
            companions: candidate.looks.companions.clone(),
            sha256: None,
            job: None,
            refused: None,
            receipt: candidate.receipt.clone(),
        };
        let effective = match recipe::effective(inbox, candidate, &self.claims.recipe) {
            Ok(effective) => effective,
            Err(error) => return self.refuse(row, error.to_string()),
        };
        let crashes = self.store.read_now(|store| store.plugin_crashes())?;
        let plugins = match self.claims.plugins.resolve(&effective.recipe, &crashes) {
            Ok(plugins) => plugins,
            Err(problem) => return self.refuse(row, effective.placed(problem).to_string()),
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
        // The copy is looked at: no one can put a link in its place.
        if let Err(error) = finetuned_engine::look(&new.data, &new.recipe) {
            return self.refuse(row, without_copy(&error, &new.data));
        }
        // What was copied is what was looked at, or it is looked at again.
        if current_looks(inbox, &candidate.path)?.as_ref() != Some(&candidate.looks) {
            return Ok(Outcome::Waits { why: "changed while it was read".into(), look_again: settle });
        }
        self.decide(row, new, known)
    }

    fn decide(&mut self, mut row: FileRow, new: NewJob, known: Option<FileRow>) -> Result<Outcome> {
        row.sha256 = Some(content_hash(&new));
        let path = row.path.clone();
        let decided = self.store.write_now(move |store| {
            if let Some(known) = known
                && known.job.is_some()
                && known.sha256 == row.sha256
            {
                // Touched, or moved away and back: the same content under the same name.
                store.restamp(&row.inbox, &row.path, &row.stamp)?;
                return Ok(None);
            }
            store.decide(&row, &Decision::Train(Box::new(new)))
        })?;
        let Some((id, is_new)) = decided else { return Ok(Outcome::Decided) };
        self.receipts.refresh(id);
        self.receipts.flush();
        let word = if is_new { "is" } else { "has the data and the recipe of" };
        tracing::info!(job = id, "{} {word} job {id}", path.display());
        Ok(if is_new { Outcome::NewJob(id) } else { Outcome::Decided })
    }

    fn refuse(&mut self, row: FileRow, why: String) -> Result<Outcome> {
        tracing::warn!("{} is refused: {why}", row.path.display());
        let refused = FileRow { refused: Some(why.clone()), ..row.clone() };
        let now_ms = self.store.write_now(move |store| {
            store.decide(&row, &Decision::Refuse(why))?;
            Ok(store.now_ms())
        })?;
        let text = receipt::render(&refused, None, false, now_ms);
        if let Err(error) = receipt::write(&refused.inbox, &refused.receipt, &text) {
            tracing::warn!("receipt of {}: {error}", refused.path.display());
        }
        Ok(Outcome::Decided)
    }

    fn write_remark(&mut self, inbox: &Path, remark: &Remark) {
        let Some(receipt) = &remark.receipt else { return };
        let path = inbox.join(receipt);
        if self.remarked.get(&path) == Some(&remark.text) {
            return;
        }
        let text = receipt::remark(&remark.path, &remark.text, wall_clock_ms());
        match receipt::write(inbox, receipt, &text) {
            Ok(()) => {
                self.remarked.insert(path, remark.text.clone());
            }
            Err(error) => tracing::warn!("receipt of {}: {error}", remark.path.display()),
        }
    }

    /// `after = "move"`: the source of an ended job goes to `_done/` or
    /// `_failed/`, under the name it had.
    fn move_ended(&self, inbox: &Path, candidate: &Candidate, row: &FileRow) -> Result<()> {
        let Some(id) = row.job else { return Ok(()) };
        let Some(job) = self.store.read_now(move |store| store.job(id))? else { return Ok(()) };
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
            let parent = target.parent().ok_or_else(|| Error::internal("a moved file has no folder"))?;
            std::fs::create_dir_all(parent)?;
            std::fs::rename(inbox.join(path), &target)
                .with_context(|| format!("cannot move {} to {folder}/", path.display()))?;
        }
        Ok(())
    }
}

fn first_missing(inbox: &Path, effective: &recipe::Effective) -> Result<Option<String>> {
    for path in std::iter::once(&effective.data).chain(&effective.validation) {
        let mut file = open_beneath(inbox, path).with_context(|| path.display())?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(missing) = finetuned_data::what_is_missing(&name, &mut file).with_context(|| path.display())? {
            return Ok(Some(missing));
        }
    }
    Ok(None)
}

/// The error's words without the name of the copy, which means nothing to the owner of
/// the file.
fn without_copy(error: &EngineError, copy: &Path) -> String {
    match error {
        EngineError::Data(DataError::File { problem, remedy, .. }) => format!("{problem}. {remedy}"),
        other => other.to_string().replace(&format!("{}: ", copy.display()), ""),
    }
}

fn current_looks(inbox: &Path, path: &Path) -> Result<Option<Looks>> {
    let listing = listing::list(inbox)?;
    let candidate = listing.candidates.into_iter().find(|candidate| candidate.path == path);
    Ok(candidate.map(|candidate| candidate.looks))
}

/// `a.jsonl`, or `a.jsonl.2` if that is taken.
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
