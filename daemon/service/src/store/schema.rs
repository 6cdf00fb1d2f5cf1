//! The tables, and the migrations that lead to them. `user_version` counts the
//! migrations that were applied.

use rusqlite::Connection;

/// Each entry brings the database from version `index` to `index + 1`. Entries
/// are never changed, only appended.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        -- sha256 of the data, and of the effective recipe: one job a key.
        key TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        state TEXT NOT NULL,
        -- What is trained from: the snapshot, or the source where it is too large.
        data TEXT NOT NULL,
        validation TEXT,
        data_sha256 TEXT NOT NULL,
        -- The effective recipe, and the request's other choices, as JSON.
        recipe TEXT NOT NULL,
        adapter TEXT,
        out TEXT NOT NULL,
        -- Milliseconds since 1970.
        created_ms INTEGER NOT NULL,
        started_ms INTEGER,
        ended_ms INTEGER,
        attempts INTEGER NOT NULL DEFAULT 0,
        -- JSON of Progress, DatasetReport, Summary.
        progress TEXT NOT NULL DEFAULT '{}',
        report TEXT,
        summary TEXT,
        error TEXT,
        -- Throw away what an earlier attempt left.
        fresh INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX jobs_by_state ON jobs(state, id);

    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        job INTEGER NOT NULL REFERENCES jobs(id),
        at_ms INTEGER NOT NULL,
        kind TEXT NOT NULL,
        body TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_by_job ON events(job, id);

    -- What the inbox has read. A row is a decision: trained as a job, the same
    -- as a job, or refused.
    CREATE TABLE files (
        inbox TEXT NOT NULL,
        path TEXT NOT NULL,
        -- What the file looked like when it was decided on.
        stamp TEXT NOT NULL,
        -- What its sidecar and standing recipe looked like.
        companions TEXT NOT NULL,
        sha256 TEXT,
        job INTEGER REFERENCES jobs(id),
        refused TEXT,
        receipt TEXT NOT NULL,
        decided_ms INTEGER NOT NULL,
        PRIMARY KEY (inbox, path)
    ) STRICT;
    CREATE INDEX files_by_job ON files(job);
",
    "
    -- The builds of the plugins that the job trains with, as JSON.
    ALTER TABLE jobs ADD COLUMN plugins TEXT NOT NULL DEFAULT '[]';
    -- Go on although a plugin is another build than the one it began with.
    ALTER TABLE jobs ADD COLUMN accept_plugin_change INTEGER NOT NULL DEFAULT 0;

    -- Workers that ended inside a plugin's call.
    CREATE TABLE plugin_crashes (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        sha256 TEXT NOT NULL,
        job INTEGER NOT NULL REFERENCES jobs(id),
        at_ms INTEGER NOT NULL,
        -- Plugin, version, step and cause.
        what TEXT NOT NULL
    ) STRICT;
    CREATE INDEX plugin_crashes_by_hash ON plugin_crashes(sha256);
",
];

/// The version that brought plugins.
pub const PLUGINS: i64 = 2;

/// How many migrations a database has had.
///
/// # Errors
/// The database.
pub fn version(connection: &Connection) -> anyhow::Result<i64> {
    Ok(connection.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

/// Applies what is missing.
///
/// # Errors
/// The database is of a later version than this program knows.
pub fn migrate(connection: &mut Connection) -> anyhow::Result<()> {
    let version = version(connection)?;
    let known = MIGRATIONS.len() as i64;
    anyhow::ensure!(
        version <= known,
        "the database is of version {version}, this program knows versions up to {known}; install a newer finetuned"
    );
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(version as usize) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", index as i64 + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

/// A database as an earlier version left it.
#[cfg(test)]
pub fn create_version(path: &std::path::Path, version: usize) {
    let connection = Connection::open(path).unwrap();
    for migration in &MIGRATIONS[..version] {
        connection.execute_batch(migration).unwrap();
    }
    connection.pragma_update(None, "user_version", version as i64).unwrap();
}
