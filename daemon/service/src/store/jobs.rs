//! Job rows and the event log.

use std::path::PathBuf;

use anyhow::Context;
use finetuned_data::DatasetReport;
use finetuned_engine::recipe::Recipe;
use finetuned_engine::{Event, Summary};
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::{State, Store, path_text, to_path};
use crate::plugins::Pinned;

/// How far a job is; rewritten while it runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    pub phase: Option<String>,
    pub step: usize,
    pub total_steps: usize,
    /// The step that the present attempt went on from.
    pub resumed_from: usize,
    pub loss: Option<f64>,
    pub learning_rate: Option<f64>,
    pub validation_loss: Option<f64>,
    /// The first one, before any update.
    pub validation_before: Option<f64>,
    pub tokens_per_second: Option<f64>,
    /// Mean over the last steps.
    pub seconds_per_step: Option<f64>,
    pub checkpoint_step: Option<usize>,
}

impl Progress {
    /// Folds one event in.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Phase { name } => self.phase = Some(name.clone()),
            Event::Started { total_steps, resumed_from } => {
                self.phase = Some("training".into());
                self.total_steps = *total_steps;
                self.resumed_from = *resumed_from;
                self.step = *resumed_from;
            }
            Event::Step(metrics) => {
                self.step = metrics.step;
                self.loss = Some(metrics.loss);
                self.learning_rate = Some(metrics.learning_rate);
                self.tokens_per_second = Some(metrics.tokens_per_second);
                let before = self.seconds_per_step.unwrap_or(metrics.seconds);
                self.seconds_per_step = Some(0.8 * before + 0.2 * metrics.seconds);
                if let Some(loss) = metrics.validation_loss {
                    self.validation_loss = Some(loss);
                }
            }
            Event::Validation { step, loss, .. } => {
                self.validation_loss = Some(*loss);
                if *step == 0 {
                    self.validation_before = Some(*loss);
                }
            }
            Event::Checkpoint { step } => self.checkpoint_step = Some(*step),
            Event::Finished(_) => self.phase = None,
            Event::Prepared { .. } | Event::Planned { .. } | Event::Progress { .. } | Event::Note { .. } => {}
        }
    }

    /// Time until the last step at the present speed.
    pub fn seconds_left(&self) -> Option<f64> {
        let left = self.total_steps.checked_sub(self.step).filter(|_| self.total_steps > 0)?;
        Some(self.seconds_per_step? * left as f64)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub id: i64,
    pub key: String,
    pub name: String,
    pub state: State,
    pub data: PathBuf,
    pub validation: Option<PathBuf>,
    pub data_sha256: String,
    pub recipe: Recipe,
    pub adapter: Option<PathBuf>,
    /// The adapter or the model goes here.
    pub out: PathBuf,
    pub created_ms: u64,
    pub started_ms: Option<u64>,
    pub ended_ms: Option<u64>,
    /// Workers that were started for it.
    pub attempts: u32,
    pub progress: Progress,
    pub report: Option<DatasetReport>,
    pub summary: Option<Summary>,
    /// Why it failed, or is paused; the worker's last words where it died.
    pub error: Option<String>,
    pub fresh: bool,
    /// The builds of the plugins that it trains with; built-in ones are not here.
    #[serde(default)]
    pub plugins: Vec<Pinned>,
    #[serde(default)]
    pub accept_plugin_change: bool,
}

/// What a claim brings.
#[derive(Debug, Clone)]
pub struct NewJob {
    pub key: String,
    pub name: String,
    pub data: PathBuf,
    pub validation: Option<PathBuf>,
    pub data_sha256: String,
    pub recipe: Recipe,
    pub adapter: Option<PathBuf>,
    pub plugins: Vec<Pinned>,
    /// The parent of the output folder; its own name is made of the job's.
    pub outputs: PathBuf,
}

/// One line of the event log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventRow {
    pub id: i64,
    pub job: i64,
    pub at_ms: u64,
    /// `state`, `log`, or the name of the engine's event.
    pub kind: String,
    pub body: serde_json::Value,
}

const COLUMNS: &str = "id, key, name, state, data, validation, data_sha256, recipe, adapter, out, created_ms, \
     started_ms, ended_ms, attempts, progress, report, summary, error, fresh, plugins, accept_plugin_change";

impl Store {
    /// The job of this key, made if there is none; `true` if it is new.
    ///
    /// # Errors
    /// The database.
    pub fn claim(&mut self, new: &NewJob) -> anyhow::Result<(Job, bool)> {
        let now = self.now_ms();
        let transaction = self.connection.transaction()?;
        let (id, is_new) = insert_job(&transaction, new, now)?;
        transaction.commit()?;
        Ok((self.job(id)?.context("the job just made is gone")?, is_new))
    }

    /// # Errors
    /// The database.
    pub fn job(&self, id: i64) -> anyhow::Result<Option<Job>> {
        let mut statement = self.connection.prepare_cached(&format!("SELECT {COLUMNS} FROM jobs WHERE id = ?"))?;
        Ok(statement.query_row([id], read_job).optional()?)
    }

    /// Newest last.
    ///
    /// # Errors
    /// The database.
    pub fn jobs(&self) -> anyhow::Result<Vec<Job>> {
        let mut statement = self.connection.prepare_cached(&format!("SELECT {COLUMNS} FROM jobs ORDER BY id"))?;
        let jobs = statement.query_map([], read_job)?.collect::<Result<_, _>>()?;
        Ok(jobs)
    }

    /// The next job that waits, oldest first.
    ///
    /// # Errors
    /// The database.
    pub fn next_queued(&self) -> anyhow::Result<Option<Job>> {
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE state = 'queued' ORDER BY id LIMIT 1");
        Ok(self.connection.prepare_cached(&sql)?.query_row([], read_job).optional()?)
    }

    /// Moves a job to another state, in one transaction with its event.
    ///
    /// # Errors
    /// There is no such job, or the transition is not legal.
    pub fn transition(&mut self, id: i64, next: State, why: &str) -> anyhow::Result<Job> {
        let now = self.now_ms();
        let transaction = self.connection.transaction()?;
        let current: Option<String> =
            transaction.query_row("SELECT state FROM jobs WHERE id = ?", [id], |row| row.get(0)).optional()?;
        let current: State =
            current.with_context(|| format!("there is no job {id}"))?.parse().map_err(anyhow::Error::msg)?;
        anyhow::ensure!(current.may_become(next), "job {id} is {current}; it cannot become {next}");
        transaction.execute("UPDATE jobs SET state = ? WHERE id = ?", params![next.name(), id])?;
        match next {
            State::Preparing => {
                transaction.execute(
                    "UPDATE jobs SET attempts = attempts + 1, started_ms = coalesce(started_ms, ?), ended_ms = NULL WHERE id = ?",
                    params![now as i64, id],
                )?;
            }
            State::Queued => {
                transaction.execute("UPDATE jobs SET error = NULL, ended_ms = NULL WHERE id = ?", [id])?;
            }
            State::Failed => {
                transaction
                    .execute("UPDATE jobs SET error = ?, ended_ms = ? WHERE id = ?", params![why, now as i64, id])?;
            }
            State::Succeeded => {
                transaction.execute(
                    "UPDATE jobs SET error = NULL, ended_ms = ?, fresh = 0 WHERE id = ?",
                    params![now as i64, id],
                )?;
            }
            State::Cancelled => {
                transaction.execute("UPDATE jobs SET ended_ms = ? WHERE id = ?", params![now as i64, id])?;
            }
            State::Paused => {
                transaction.execute("UPDATE jobs SET error = ? WHERE id = ?", params![why, id])?;
            }
            State::Running => {}
        }
        let body = serde_json::json!({ "from": current, "to": next, "why": why });
        add_event(&transaction, id, now, "state", &body)?;
        transaction.commit()?;
        self.job(id)?.context("the job is gone")
    }

    /// After a start: what a worker had in hands waits again.
    ///
    /// # Errors
    /// The database.
    pub fn requeue_active(&mut self, why: &str) -> anyhow::Result<Vec<Job>> {
        let active: Vec<Job> = self.jobs()?.into_iter().filter(|job| job.state.is_active()).collect();
        active.iter().map(|job| self.transition(job.id, State::Queued, why)).collect()
    }

    /// Writes events and the progress they lead to, in one transaction.
    ///
    /// # Errors
    /// The database.
    pub fn record(
        &mut self,
        id: i64,
        progress: &Progress,
        events: &[(String, serde_json::Value)],
    ) -> anyhow::Result<()> {
        let now = self.now_ms();
        let transaction = self.connection.transaction()?;
        for (kind, body) in events {
            add_event(&transaction, id, now, kind, body)?;
        }
        transaction
            .execute("UPDATE jobs SET progress = ? WHERE id = ?", params![serde_json::to_string(progress)?, id])?;
        transaction.commit()?;
        Ok(())
    }

    /// # Errors
    /// The database.
    pub fn set_report(&mut self, id: i64, report: &DatasetReport) -> anyhow::Result<()> {
        self.connection
            .execute("UPDATE jobs SET report = ? WHERE id = ?", params![serde_json::to_string(report)?, id])?;
        Ok(())
    }

    /// # Errors
    /// The database.
    pub fn set_summary(&mut self, id: i64, summary: &Summary) -> anyhow::Result<()> {
        self.connection
            .execute("UPDATE jobs SET summary = ? WHERE id = ?", params![serde_json::to_string(summary)?, id])?;
        Ok(())
    }

    /// The next attempt goes on with other builds of its plugins.
    ///
    /// # Errors
    /// The database.
    pub fn set_accept_plugin_change(&mut self, id: i64, accept: bool) -> anyhow::Result<()> {
        self.connection.execute("UPDATE jobs SET accept_plugin_change = ? WHERE id = ?", params![accept, id])?;
        Ok(())
    }

    /// The builds that its next attempt trains with.
    ///
    /// # Errors
    /// The database.
    pub fn set_plugins(&mut self, id: i64, plugins: &[Pinned]) -> anyhow::Result<()> {
        self.connection
            .execute("UPDATE jobs SET plugins = ? WHERE id = ?", params![serde_json::to_string(plugins)?, id])?;
        Ok(())
    }

    /// The next attempt starts over.
    ///
    /// # Errors
    /// The database.
    pub fn set_fresh(&mut self, id: i64, fresh: bool) -> anyhow::Result<()> {
        self.connection.execute("UPDATE jobs SET fresh = ? WHERE id = ?", params![fresh, id])?;
        Ok(())
    }

    /// Events after the one with id `after`, of one job or of all.
    ///
    /// # Errors
    /// The database.
    pub fn events(&self, job: Option<i64>, after: i64, limit: usize) -> anyhow::Result<Vec<EventRow>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT id, job, at_ms, kind, body FROM events WHERE id > ?1 AND (?2 IS NULL OR job = ?2) ORDER BY id LIMIT ?3",
        )?;
        let rows = statement.query_map(params![after, job, limit as i64], |row| {
            Ok(EventRow {
                id: row.get(0)?,
                job: row.get(1)?,
                at_ms: row.get::<_, i64>(2)? as u64,
                kind: row.get(3)?,
                body: json(row, 4)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The id of the last event, 0 where there is none.
    ///
    /// # Errors
    /// The database.
    pub fn last_event(&self) -> anyhow::Result<i64> {
        Ok(self.connection.query_row("SELECT coalesce(max(id), 0) FROM events", [], |row| row.get(0))?)
    }
}

/// Inserts the job of `new.key`, or finds it.
pub(super) fn insert_job(
    transaction: &rusqlite::Transaction<'_>,
    new: &NewJob,
    now: u64,
) -> anyhow::Result<(i64, bool)> {
    let found: Option<i64> =
        transaction.query_row("SELECT id FROM jobs WHERE key = ?", [&new.key], |row| row.get(0)).optional()?;
    if let Some(id) = found {
        return Ok((id, false));
    }
    transaction.execute(
        "INSERT INTO jobs (key, name, state, data, validation, data_sha256, recipe, adapter, plugins, out, created_ms)
         VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?, '', ?)",
        params![
            new.key,
            new.name,
            path_text(&new.data)?,
            new.validation.as_deref().map(path_text).transpose()?,
            new.data_sha256,
            serde_json::to_string(&new.recipe)?,
            new.adapter.as_deref().map(path_text).transpose()?,
            serde_json::to_string(&new.plugins)?,
            now as i64,
        ],
    )?;
    let id = transaction.last_insert_rowid();
    let out = new.outputs.join(output_name(&new.name, id));
    transaction.execute("UPDATE jobs SET out = ? WHERE id = ?", params![path_text(&out)?, id])?;
    add_event(transaction, id, now, "state", &serde_json::json!({ "from": null, "to": "queued", "why": "claimed" }))?;
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

fn add_event(
    transaction: &rusqlite::Transaction<'_>,
    job: i64,
    at_ms: u64,
    kind: &str,
    body: &serde_json::Value,
) -> anyhow::Result<()> {
    transaction.prepare_cached("INSERT INTO events (job, at_ms, kind, body) VALUES (?, ?, ?, ?)")?.execute(params![
        job,
        at_ms as i64,
        kind,
        body.to_string()
    ])?;
    Ok(())
}

fn read_job(row: &Row<'_>) -> rusqlite::Result<Job> {
    let state: String = row.get(3)?;
    Ok(Job {
        id: row.get(0)?,
        key: row.get(1)?,
        name: row.get(2)?,
        state: state.parse().map_err(|error: String| broken(3, std::io::Error::other(error)))?,
        data: to_path(row.get(4)?),
        validation: row.get::<_, Option<String>>(5)?.map(to_path),
        data_sha256: row.get(6)?,
        recipe: json(row, 7)?,
        adapter: row.get::<_, Option<String>>(8)?.map(to_path),
        out: to_path(row.get(9)?),
        created_ms: row.get::<_, i64>(10)? as u64,
        started_ms: row.get::<_, Option<i64>>(11)?.map(|ms| ms as u64),
        ended_ms: row.get::<_, Option<i64>>(12)?.map(|ms| ms as u64),
        attempts: row.get(13)?,
        progress: json(row, 14)?,
        report: optional_json(row, 15)?,
        summary: optional_json(row, 16)?,
        error: row.get(17)?,
        fresh: row.get(18)?,
        plugins: json(row, 19)?,
        accept_plugin_change: row.get(20)?,
    })
}

fn json<T: serde::de::DeserializeOwned>(row: &Row<'_>, index: usize) -> rusqlite::Result<T> {
    serde_json::from_str(&row.get::<_, String>(index)?).map_err(|error| broken(index, error))
}

fn optional_json<T: serde::de::DeserializeOwned>(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<T>> {
    match row.get::<_, Option<String>>(index)? {
        Some(text) => serde_json::from_str(&text).map(Some).map_err(|error| broken(index, error)),
        None => Ok(None),
    }
}

fn broken(index: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(error))
}
