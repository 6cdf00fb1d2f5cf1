//! The event log of jobs.

use rusqlite::{Row, params};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use finetuned_engine::Event;

use super::rows::{Json, Milliseconds};
use super::{Change, Progress, State, Store};
use crate::error::{Error, Result};

/// One line of the event log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventRow {
    /// Grows with each event.
    pub id: i64,
    /// The job it happened to.
    pub job: i64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// `state`, or the name of the engine's event.
    pub kind: String,
    /// The rest of the event, as JSON.
    pub body: Value,
}

/// What the service itself writes into the log, beside the engine's events.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum OwnEvent<'a> {
    State { from: Option<State>, to: State, why: &'a str },
}

impl<'a> OwnEvent<'a> {
    pub(super) fn of_change(from: Option<State>, change: &'a Change) -> OwnEvent<'a> {
        OwnEvent::State { from, to: change.to, why: &change.why }
    }
}

impl Store {
    /// Writes events and the progress they lead to, in one transaction.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn record(&mut self, id: i64, progress: &Progress, events: &[Event]) -> Result<()> {
        let now = self.now_ms();
        let transaction = self.connection.transaction()?;
        for event in events {
            add(&transaction, id, now, event)?;
        }
        transaction.execute("UPDATE jobs SET progress = ? WHERE id = ?", params![Json(progress), id])?;
        Ok(transaction.commit()?)
    }

    /// At most `limit` events after the one with id `after`, of one job or of all.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn events(&self, job: Option<i64>, after: i64, limit: usize) -> Result<Vec<EventRow>> {
        const COLUMNS: &str = "SELECT id, job, at_ms, kind, body FROM events WHERE";
        let limit = limit as i64;
        let rows = match job {
            Some(job) => {
                let sql = format!("{COLUMNS} job = ? AND id > ? ORDER BY id LIMIT ?");
                let mut statement = self.connection.prepare_cached(&sql)?;
                statement.query_map(params![job, after, limit], read)?.collect::<rusqlite::Result<_>>()?
            }
            None => {
                let sql = format!("{COLUMNS} id > ? ORDER BY id LIMIT ?");
                let mut statement = self.connection.prepare_cached(&sql)?;
                statement.query_map(params![after, limit], read)?.collect::<rusqlite::Result<_>>()?
            }
        };
        Ok(rows)
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<EventRow> {
    Ok(EventRow {
        id: row.get("id")?,
        job: row.get("job")?,
        at_ms: row.get::<_, Milliseconds>("at_ms")?.0,
        kind: row.get("kind")?,
        body: row.get::<_, Json<Value>>("body")?.0,
    })
}

/// Adds an event: its tag is the row's kind, the rest is the row's body.
pub(super) fn add(transaction: &rusqlite::Transaction<'_>, job: i64, at_ms: u64, event: &impl Serialize) -> Result<()> {
    let Value::Object(mut body) = serde_json::to_value(event)? else {
        return Err(Error::internal("an event is not a JSON object"));
    };
    let kind = body.shift_remove("event");
    let kind = kind.as_ref().and_then(Value::as_str).ok_or_else(|| Error::internal("an event without a name"))?;
    transaction.prepare_cached("INSERT INTO events (job, at_ms, kind, body) VALUES (?, ?, ?, ?)")?.execute(params![
        job,
        at_ms as i64,
        kind,
        Json(&Value::Object(body))
    ])?;
    Ok(())
}
