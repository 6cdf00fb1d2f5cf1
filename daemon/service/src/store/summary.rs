//! What lists of jobs show of each job. A list costs the same however many jobs
//! there have been: it reads at most a page of rows for each state, through an
//! index, and the counts are kept by triggers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rusqlite::{Params, Row, params};
use serde::{Deserialize, Serialize};

use finetuned_engine::ErrorKind;

use super::rows::{Json, KindName, Milliseconds, PathText};
use super::{Progress, State, Store};
use crate::error::Result;

/// A job without its recipe, report and summary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSummary {
    /// Its number.
    pub id: i64,
    /// For people; the dataset's name.
    pub name: String,
    /// Where it is in its life.
    pub state: State,
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
    /// The first characters of why it failed, or is paused.
    pub error: Option<String>,
    /// What kind of error that was, if it was one.
    pub error_kind: Option<ErrorKind>,
}

/// Which jobs a list shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobQuery {
    /// At most so many.
    pub limit: Option<usize>,
    /// Those of this state alone.
    pub state: Option<State>,
    /// Those that are older than this job.
    pub before: Option<i64>,
}

/// Jobs by state.
pub type Counts = BTreeMap<State, u64>;

/// A list shows the first characters of an error.
const SELECT: &str = "SELECT id, name, state, out, created_ms, started_ms, ended_ms, attempts, progress, \
     substr(error, 1, 300) AS error, error_kind FROM jobs";
const NEWEST: &str = "WHERE id < ? ORDER BY id DESC LIMIT ?";
const NEWEST_OF_STATE: &str = "WHERE state = ? AND id < ? ORDER BY id DESC LIMIT ?";
const OLDEST_OF_STATE: &str = "WHERE state = ? ORDER BY id LIMIT ?";
const COUNTS: &str = "SELECT state, jobs FROM job_counts WHERE jobs > 0";

impl Store {
    /// At most `limit` jobs of a page, newest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn summaries(&self, page: &JobQuery, limit: usize) -> Result<Vec<JobSummary>> {
        let before = page.before.unwrap_or(i64::MAX);
        let limit = limit.min(page.limit.unwrap_or(limit)) as i64;
        match page.state {
            Some(state) => self.list(NEWEST_OF_STATE, params![state, before, limit]),
            None => self.list(NEWEST, params![before, limit]),
        }
    }

    /// What deserves to be seen first, at most `limit` jobs: those with a worker,
    /// those that wait (the next one first), those that are paused, and then the
    /// newest.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn overview(&self, limit: usize) -> Result<Vec<JobSummary>> {
        let most = limit as i64;
        let newest = |state: State| self.list(NEWEST_OF_STATE, params![state, i64::MAX, most]);
        let mut jobs = newest(State::Running)?;
        jobs.extend(newest(State::Preparing)?);
        jobs.extend(self.list(OLDEST_OF_STATE, params![State::Queued, most])?);
        jobs.extend(newest(State::Paused)?);
        let mut ended = newest(State::Succeeded)?;
        ended.extend(newest(State::Failed)?);
        ended.extend(newest(State::Cancelled)?);
        ended.sort_by_key(|job| std::cmp::Reverse(job.id));
        jobs.extend(ended);
        jobs.truncate(limit);
        Ok(jobs)
    }

    /// The jobs that have a worker, at most `limit`.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn active(&self, limit: usize) -> Result<Vec<JobSummary>> {
        let mut jobs = self.list(OLDEST_OF_STATE, params![State::Running, limit as i64])?;
        jobs.extend(self.list(OLDEST_OF_STATE, params![State::Preparing, limit as i64])?);
        Ok(jobs)
    }

    /// Jobs by state; a state without jobs is not in it.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn counts(&self) -> Result<Counts> {
        let mut statement = self.connection.prepare_cached(COUNTS)?;
        let rows = statement.query_map([], |row| Ok((row.get("state")?, row.get::<_, i64>("jobs")? as u64)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    fn list(&self, which: &str, values: impl Params) -> Result<Vec<JobSummary>> {
        let mut statement = self.connection.prepare_cached(&format!("{SELECT} {which}"))?;
        Ok(statement.query_map(values, read)?.collect::<rusqlite::Result<_>>()?)
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<JobSummary> {
    let moment = |name: &str| row.get::<_, Option<Milliseconds>>(name).map(|ms| ms.map(|ms| ms.0));
    Ok(JobSummary {
        id: row.get("id")?,
        name: row.get("name")?,
        state: row.get("state")?,
        out: row.get::<_, PathText>("out")?.0,
        created_ms: row.get::<_, Milliseconds>("created_ms")?.0,
        started_ms: moment("started_ms")?,
        ended_ms: moment("ended_ms")?,
        attempts: row.get("attempts")?,
        progress: row.get::<_, Json<_>>("progress")?.0,
        error: row.get("error")?,
        error_kind: row.get::<_, Option<KindName>>("error_kind")?.map(|kind| kind.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::StatementStatus;

    /// A store of `count` jobs: one runs, one waits, the others have succeeded.
    fn store_of(count: i64) -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("t.db")).unwrap();
        let recipe = serde_json::to_string(&finetuned_engine::Recipe::default()).unwrap();
        let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
            INSERT INTO jobs (key, name, state, data, data_sha256, recipe, out, created_ms, error)
            SELECT i, 'job', CASE i WHEN 2 THEN 'running' WHEN 3 THEN 'queued' ELSE 'succeeded' END,
                'd', 's', ?2, 'o', i, CASE i WHEN 4 THEN ?3 END FROM n";
        store.connection.execute(sql, params![count, recipe, "long ".repeat(1000)]).unwrap();
        (dir, store)
    }

    #[test]
    fn the_overview_begins_with_what_works_and_waits() {
        let (_dir, store) = store_of(10_000);
        let shown: Vec<(i64, State)> = store.overview(5).unwrap().iter().map(|job| (job.id, job.state)).collect();
        let done = State::Succeeded;
        assert_eq!(shown, [(2, State::Running), (3, State::Queued), (10_000, done), (9_999, done), (9_998, done)]);
        let counts = store.counts().unwrap();
        assert_eq!(counts, Counts::from([(State::Queued, 1), (State::Running, 1), (done, 9_998)]));
    }

    #[test]
    fn pages_go_on_where_the_last_one_ended() {
        let (_dir, store) = store_of(30);
        let ids =
            |page: &JobQuery| -> Vec<i64> { store.summaries(page, 100).unwrap().iter().map(|job| job.id).collect() };
        assert_eq!(ids(&JobQuery { limit: Some(2), ..JobQuery::default() }), [30, 29]);
        assert_eq!(ids(&JobQuery { limit: Some(2), before: Some(29), ..JobQuery::default() }), [28, 27]);
        assert_eq!(ids(&JobQuery { state: Some(State::Queued), ..JobQuery::default() }), [3]);
        assert_eq!(ids(&JobQuery::default()).len(), 30);
    }

    #[test]
    fn a_long_error_is_cut_in_a_list() {
        let (_dir, store) = store_of(4);
        let error = store.summaries(&JobQuery::default(), 1).unwrap().remove(0).error.unwrap();
        assert_eq!(error.chars().count(), 300);
    }

    /// What SQLite does for a list, in steps of its machine: a count, not a time.
    fn steps(store: &Store, sql: &str, values: impl Params) -> i32 {
        let mut statement = store.connection.prepare(sql).unwrap();
        let rows = statement.query_map(values, |_| Ok(())).unwrap().count();
        assert!(rows > 0, "{sql} finds nothing");
        assert_eq!(statement.get_status(StatementStatus::FullscanStep), 0, "{sql} scans a table");
        assert_eq!(statement.get_status(StatementStatus::Sort), 0, "{sql} sorts");
        statement.get_status(StatementStatus::VmStep)
    }

    #[test]
    fn a_list_costs_the_same_with_ten_and_with_ten_thousand_jobs() {
        let (_few, few) = store_of(30);
        let (_many, many) = store_of(10_000);
        let cost = |store: &Store| {
            [
                steps(store, &format!("{SELECT} {NEWEST}"), params![i64::MAX, 20]),
                steps(store, &format!("{SELECT} {NEWEST_OF_STATE}"), params![State::Succeeded, i64::MAX, 20]),
                steps(store, &format!("{SELECT} {OLDEST_OF_STATE}"), params![State::Queued, 20]),
            ]
        };
        assert_eq!(cost(&few), cost(&many));
        let counted = |store: &Store| {
            let mut statement = store.connection.prepare(COUNTS).unwrap();
            let states = statement.query_map([], |_| Ok(())).unwrap().count();
            (states, statement.get_status(StatementStatus::VmStep))
        };
        assert_eq!(counted(&few), counted(&many));
        let bytes = |store: &Store| serde_json::to_string(&store.overview(20).unwrap()).unwrap().len();
        assert!(bytes(&many) < bytes(&few) + 20 * 20, "only the numbers of the jobs are longer");
    }
}
