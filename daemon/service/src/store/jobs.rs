//! Job rows: claimed once per key, moved from state to state.

use std::path::PathBuf;

use finetuned_data::DatasetReport;
use finetuned_engine::{ErrorKind, Recipe, Summary};
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use super::events::{self, OwnEvent};
use super::rows::{Json, KindName, Milliseconds, PathText, path_text};
use super::{Change, Progress, State, Store};
use crate::error::{Error, Result};
use crate::plugins::Pinned;

/// A job, in full.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its number.
    pub id: i64,
    /// Hash of data, recipe and plugins: one job per key.
    pub key: String,
    /// For people; the dataset's name.
    pub name: String,
    /// Where it is in its life.
    pub state: State,
    /// What is trained on: the snapshot, or the source if it is too large to copy.
    pub data: PathBuf,
    /// Validation rows, if they are a file of their own.
    pub validation: Option<PathBuf>,
    /// Of the data, in hexadecimal.
    pub data_sha256: String,
    /// All choices of the run.
    pub recipe: Recipe,
    /// A PEFT adapter to start from.
    pub adapter: Option<PathBuf>,
    /// The adapter or the model goes here.
    pub out: PathBuf,
    /// When it was claimed, in milliseconds since 1970.
    pub created_ms: u64,
    /// When its first worker was started.
    pub started_ms: Option<u64>,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// Workers that were started for it.
    pub attempts: u32,
    /// How far it is.
    pub progress: Progress,
    /// What was found in its dataset.
    pub report: Option<DatasetReport>,
    /// How it ended, if it succeeded.
    pub summary: Option<Summary>,
    /// Why it failed, or is paused; with the last lines of a worker that died.
    pub error: Option<String>,
    /// What kind of error that was, if it was one.
    #[serde(default)]
    pub error_kind: Option<ErrorKind>,
    /// The next attempt throws away what earlier ones left.
    pub fresh: bool,
    /// The builds of the plugins that it trains with; built-in ones are not here.
    #[serde(default)]
    pub plugins: Vec<Pinned>,
    #[serde(default)]
    /// The next attempt goes on with another build of a plugin.
    pub accept_plugin_change: bool,
}

/// What a claim brings.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Hash of data, recipe and plugins: one job per key.
    pub key: String,
    /// For people; the dataset's name.
    pub name: String,
    /// What is trained on: the snapshot, or the source if it is too large to copy.
    pub data: PathBuf,
    /// Validation rows, if they are a file of their own.
    pub validation: Option<PathBuf>,
    /// Of the data, in hexadecimal.
    pub data_sha256: String,
    /// All choices of the run.
    pub recipe: Recipe,
    /// A PEFT adapter to start from.
    pub adapter: Option<PathBuf>,
    /// The builds of the plugins that it trains with.
    pub plugins: Vec<Pinned>,
    /// The parent of the output folder, which is named after the job.
    pub outputs: PathBuf,
}

/// What the next attempt of a failed or cancelled job is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Again {
    /// Throw away what the earlier attempts left.
    pub fresh: bool,
    /// Go on although a plugin is another build than the one it began with.
    pub accept_plugin_change: bool,
    /// The builds that the next attempt trains with.
    pub plugins: Vec<Pinned>,
}

/// The error of a job's number that does not exist.
fn no_job(id: i64) -> Error {
    Error::not_found(format!("there is no job {id}"))
}

impl Store {
    /// The job of this key, made if there is none; `true` if it is new.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn claim(&mut self, new: &NewJob) -> Result<(Job, bool)> {
        let now = self.now_ms();
        let transaction = self.connection.transaction()?;
        let (id, is_new) = insert_job(&transaction, new, now)?;
        transaction.commit()?;
        Ok((self.existing(id)?, is_new))
    }

    /// # Errors
    /// The database cannot be read.
    pub fn job(&self, id: i64) -> Result<Option<Job>> {
        let mut statement = self.connection.prepare_cached("SELECT * FROM jobs WHERE id = ?")?;
        Ok(statement.query_row([id], read_job).optional()?)
    }

    /// # Errors
    /// There is no such job, or the database cannot be read.
    pub fn existing(&self, id: i64) -> Result<Job> {
        self.job(id)?.ok_or_else(|| no_job(id))
    }

    /// The next job that waits, oldest first, moved to `preparing`.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn start_next(&mut self) -> Result<Option<Job>> {
        let sql = "SELECT id FROM jobs WHERE state = ? ORDER BY id LIMIT 1";
        let next: Option<i64> =
            self.connection.prepare_cached(sql)?.query_row([State::Queued], |row| row.get("id")).optional()?;
        next.map(|id| self.transition(id, &Change::to(State::Preparing, "a worker starts"))).transpose()
    }

    /// Moves a job to another state, in one transaction with its event.
    ///
    /// # Errors
    /// There is no such job, or the transition is not legal.
    pub fn transition(&mut self, id: i64, change: &Change) -> Result<Job> {
        let now = self.now_ms();
        let transaction = self.connection.transaction()?;
        change_state(&transaction, id, change, now)?;
        transaction.commit()?;
        self.existing(id)
    }

    /// Puts a job back into the queue with what its next attempt is told.
    ///
    /// # Errors
    /// There is no such job, or it cannot be started again.
    pub fn requeue(&mut self, id: i64, again: &Again) -> Result<Job> {
        let now = self.now_ms();
        let transaction = self.connection.transaction()?;
        let why = if again.fresh { "retried from the start" } else { "retried" };
        change_state(&transaction, id, &Change::to(State::Queued, why), now)?;
        transaction.execute(
            "UPDATE jobs SET plugins = ?, accept_plugin_change = ?, fresh = fresh OR ? WHERE id = ?",
            params![Json(&again.plugins), again.accept_plugin_change, again.fresh, id],
        )?;
        transaction.commit()?;
        self.existing(id)
    }

    /// After a start: the jobs that had a worker wait again.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn requeue_active(&mut self, why: &str) -> Result<Vec<Job>> {
        let active: Vec<i64> = {
            let mut statement = self.connection.prepare("SELECT id FROM jobs WHERE state IN (?, ?) ORDER BY id")?;
            statement
                .query_map([State::Preparing, State::Running], |row| row.get("id"))?
                .collect::<rusqlite::Result<_>>()?
        };
        active.into_iter().map(|id| self.transition(id, &Change::to(State::Queued, why))).collect()
    }

    /// The first step begins: what the attempt was told is done.
    ///
    /// # Errors
    /// There is no such job, or the transition is not legal.
    pub fn begin(&mut self, id: i64) -> Result<()> {
        let now = self.now_ms();
        let transaction = self.connection.transaction()?;
        change_state(&transaction, id, &Change::to(State::Running, "training"), now)?;
        transaction.execute("UPDATE jobs SET fresh = 0, accept_plugin_change = 0 WHERE id = ?", [id])?;
        Ok(transaction.commit()?)
    }

    /// # Errors
    /// The database cannot be written.
    pub fn set_report(&mut self, id: i64, report: &DatasetReport) -> Result<()> {
        self.connection.execute("UPDATE jobs SET report = ? WHERE id = ?", params![Json(report), id])?;
        Ok(())
    }

    /// # Errors
    /// The database cannot be written.
    pub fn set_summary(&mut self, id: i64, summary: &Summary) -> Result<()> {
        self.connection.execute("UPDATE jobs SET summary = ? WHERE id = ?", params![Json(summary), id])?;
        Ok(())
    }
}

fn change_state(transaction: &Transaction<'_>, id: i64, change: &Change, now: u64) -> Result<()> {
    let found: Option<State> =
        transaction.query_row("SELECT state FROM jobs WHERE id = ?", [id], |row| row.get("state")).optional()?;
    let current = found.ok_or_else(|| no_job(id))?;
    if !current.may_become(change.to) {
        return Err(Error::conflict(format!("job {id} is {current}; it cannot become {}", change.to)));
    }
    transaction.execute("UPDATE jobs SET state = ? WHERE id = ?", params![change.to, id])?;
    let (why, kind, now_ms) = (&change.why, change.kind.map(KindName), now as i64);
    match change.to {
        State::Preparing => transaction.execute(
            "UPDATE jobs SET attempts = attempts + 1, started_ms = coalesce(started_ms, ?), ended_ms = NULL
             WHERE id = ?",
            params![now_ms, id],
        )?,
        State::Running => 0,
        State::Queued => transaction
            .execute("UPDATE jobs SET error = NULL, error_kind = NULL, ended_ms = NULL WHERE id = ?", [id])?,
        State::Paused => {
            transaction.execute("UPDATE jobs SET error = ?, error_kind = ? WHERE id = ?", params![why, kind, id])?
        }
        State::Failed => transaction.execute(
            "UPDATE jobs SET error = ?, error_kind = ?, ended_ms = ? WHERE id = ?",
            params![why, kind, now_ms, id],
        )?,
        State::Succeeded => transaction.execute(
            "UPDATE jobs SET error = NULL, error_kind = NULL, ended_ms = ?, fresh = 0 WHERE id = ?",
            params![now_ms, id],
        )?,
        State::Cancelled => transaction.execute("UPDATE jobs SET ended_ms = ? WHERE id = ?", params![now_ms, id])?,
    };
    events::add(transaction, id, now, &OwnEvent::of_change(Some(current), change))
}

/// Inserts the job of `new.key`, or finds it.
pub(super) fn insert_job(transaction: &Transaction<'_>, new: &NewJob, now: u64) -> Result<(i64, bool)> {
    let found: Option<i64> =
        transaction.query_row("SELECT id FROM jobs WHERE key = ?", [&new.key], |row| row.get("id")).optional()?;
    if let Some(id) = found {
        return Ok((id, false));
    }
    transaction.execute(
        "INSERT INTO jobs (key, name, state, data, validation, data_sha256, recipe, adapter, plugins, out, created_ms)
         VALUES (:key, :name, :state, :data, :validation, :data_sha256, :recipe, :adapter, :plugins, '', :created_ms)",
        rusqlite::named_params! {
            ":key": new.key,
            ":name": new.name,
            ":state": State::Queued,
            ":data": path_text(&new.data)?,
            ":validation": new.validation.as_deref().map(path_text).transpose()?,
            ":data_sha256": new.data_sha256,
            ":recipe": Json(&new.recipe),
            ":adapter": new.adapter.as_deref().map(path_text).transpose()?,
            ":plugins": Json(&new.plugins),
            ":created_ms": now as i64,
        },
    )?;
    let id = transaction.last_insert_rowid();
    let out = new.outputs.join(output_name(&new.name, id));
    transaction.execute("UPDATE jobs SET out = ? WHERE id = ?", params![path_text(&out)?, id])?;
    let claimed = Change::to(State::Queued, "claimed");
    events::add(transaction, id, now, &OwnEvent::of_change(None, &claimed))?;
    Ok((id, true))
}

/// `support-7`: the id makes it unique, so the file's name only has to be safe.
fn output_name(name: &str, id: i64) -> String {
    let safe: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' })
        .take(60)
        .collect();
    format!("{}-{id}", safe.trim_matches('-'))
}

fn read_job(row: &Row<'_>) -> rusqlite::Result<Job> {
    let path = |name: &str| row.get::<_, Option<PathText>>(name).map(|path| path.map(|path| path.0));
    let moment = |name: &str| row.get::<_, Option<Milliseconds>>(name).map(|ms| ms.map(|ms| ms.0));
    Ok(Job {
        id: row.get("id")?,
        key: row.get("key")?,
        name: row.get("name")?,
        state: row.get("state")?,
        data: row.get::<_, PathText>("data")?.0,
        validation: path("validation")?,
        data_sha256: row.get("data_sha256")?,
        recipe: row.get::<_, Json<_>>("recipe")?.0,
        adapter: path("adapter")?,
        out: row.get::<_, PathText>("out")?.0,
        created_ms: row.get::<_, Milliseconds>("created_ms")?.0,
        started_ms: moment("started_ms")?,
        ended_ms: moment("ended_ms")?,
        attempts: row.get("attempts")?,
        progress: row.get::<_, Json<_>>("progress")?.0,
        report: row.get::<_, Option<Json<_>>>("report")?.map(|json| json.0),
        summary: row.get::<_, Option<Json<_>>>("summary")?.map(|json| json.0),
        error: row.get("error")?,
        error_kind: row.get::<_, Option<KindName>>("error_kind")?.map(|kind| kind.0),
        fresh: row.get("fresh")?,
        plugins: row.get::<_, Json<_>>("plugins")?.0,
        accept_plugin_change: row.get("accept_plugin_change")?,
    })
}
