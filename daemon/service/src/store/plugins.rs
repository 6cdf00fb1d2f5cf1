//! Workers that ended inside a plugin's call, by the hash of its file.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Context;
use rusqlite::{Connection, OpenFlags, params};

use super::{Store, schema};

/// How often workers ended in the calls of one build, and the last time in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crashed {
    pub count: usize,
    /// `plugin my-loss 0.1.0, step 3, in evaluate: …`.
    pub last: String,
}

/// By SHA-256.
pub type Crashes = HashMap<String, Crashed>;

impl Store {
    /// Writes one down; returns how many the build has now.
    ///
    /// # Errors
    /// The database.
    pub fn add_plugin_crash(&mut self, sha256: &str, job: i64, what: &str) -> anyhow::Result<usize> {
        let now = self.now_ms();
        self.connection.execute(
            "INSERT INTO plugin_crashes (sha256, job, at_ms, what) VALUES (?, ?, ?, ?)",
            params![sha256, job, now as i64, what],
        )?;
        Ok(self.connection.query_row("SELECT count(*) FROM plugin_crashes WHERE sha256 = ?", [sha256], |row| {
            row.get::<_, i64>(0).map(|count| count as usize)
        })?)
    }

    /// # Errors
    /// The database.
    pub fn plugin_crashes(&self) -> anyhow::Result<Crashes> {
        read(&self.connection)
    }
}

/// The same from a database that a daemon may be using; none where there is no
/// database, or one from before there were plugins.
///
/// # Errors
/// It cannot be read.
pub fn crashes_in(database: &Path) -> anyhow::Result<Crashes> {
    if !database.exists() {
        return Ok(Crashes::new());
    }
    let open = || -> anyhow::Result<Crashes> {
        let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        if schema::version(&connection)? < schema::PLUGINS {
            return Ok(Crashes::new());
        }
        read(&connection)
    };
    open().with_context(|| format!("cannot read {}", database.display()))
}

fn read(connection: &Connection) -> anyhow::Result<Crashes> {
    let mut statement = connection.prepare_cached("SELECT sha256, what FROM plugin_crashes ORDER BY id")?;
    let mut crashes = Crashes::new();
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    for row in rows {
        let (sha256, last) = row?;
        let crashed = crashes.entry(sha256).or_insert(Crashed { count: 0, last: String::new() });
        crashed.count += 1;
        crashed.last = last;
    }
    Ok(crashes)
}
