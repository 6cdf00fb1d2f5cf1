//! Workers that ended inside a plugin's call, by the hash of its file.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, params};

use super::{Store, schema};
use crate::error::{Context, Result};
use crate::plugins::{Crashed, Crashes};

impl Store {
    /// Writes one down; returns how many the build has now.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn add_plugin_crash(&mut self, sha256: &str, job: i64, what: &str) -> Result<usize> {
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
    /// The database cannot be read.
    pub fn plugin_crashes(&self) -> Result<Crashes> {
        read(&self.connection)
    }
}

/// The same from a database that a daemon may be using; none if there is no
/// database, or if it is from before there were plugins.
///
/// # Errors
/// It cannot be read.
pub fn crashes_in(database: &Path) -> Result<Crashes> {
    if !database.exists() {
        return Ok(Crashes::new());
    }
    let open = || -> Result<Crashes> {
        let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        if schema::version(&connection)? < schema::PLUGINS {
            return Ok(Crashes::new());
        }
        read(&connection)
    };
    open().with_context(|| format!("cannot read {}", database.display()))
}

fn read(connection: &Connection) -> Result<Crashes> {
    let mut statement = connection.prepare_cached("SELECT sha256, what FROM plugin_crashes ORDER BY id")?;
    let mut crashes = Crashes::new();
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>("sha256")?, row.get::<_, String>("what")?)))?;
    for row in rows {
        let (sha256, last) = row?;
        let crashed = crashes.entry(sha256).or_insert(Crashed { count: 0, last: String::new() });
        crashed.count += 1;
        crashed.last = last;
    }
    Ok(crashes)
}
