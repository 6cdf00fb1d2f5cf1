//! Jobs, their events, and what the inbox decided, in SQLite: one connection,
//! write-ahead log, every commit synced to the disk before it counts.

mod files;
mod jobs;
mod plugins;
mod schema;
mod state;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use rusqlite::Connection;

pub use files::{Decision, FileRow};
pub use jobs::{EventRow, Job, NewJob, Progress};
pub use plugins::{Crashed, Crashes, crashes_in};
pub use state::State;

/// A clock for what is stored; tests bring their own.
pub type Clock = fn() -> u64;

/// Milliseconds since 1970.
pub fn wall_clock_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// `2026-11-24T06:14:32Z`.
pub fn timestamp(ms: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(ms)).to_string()
}

pub struct Store {
    connection: Connection,
    clock: Clock,
}

impl Store {
    /// Opens or creates the database.
    ///
    /// # Errors
    /// The file lies on a network file system, where the log is not safe; it
    /// cannot be written; or it is of a later version.
    pub fn open(path: &Path) -> anyhow::Result<Store> {
        if let Some(folder) = path.parent()
            && let Some(kind) = crate::filesystem::network_kind(folder)
        {
            anyhow::bail!(
                "{} lies on {kind}: SQLite's log needs a local disk; set state_dir to a local folder (inboxes may stay on the network)",
                folder.display()
            );
        }
        Store::open_with_clock(path, wall_clock_ms)
    }

    /// The same with another clock.
    ///
    /// # Errors
    /// See [`Store::open`].
    pub fn open_with_clock(path: &Path, clock: Clock) -> anyhow::Result<Store> {
        let mut connection =
            Connection::open(path).with_context(|| format!("cannot open the database {}", path.display()))?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", "ON")?;
        schema::migrate(&mut connection).with_context(|| format!("in {}", path.display()))?;
        Ok(Store { connection, clock })
    }

    pub fn now_ms(&self) -> u64 {
        (self.clock)()
    }
}

fn path_text(path: &Path) -> anyhow::Result<&str> {
    // Names of outputs come from job ids, and names in the inbox are checked
    // when they are listed, so this is about state_dir itself.
    path.to_str().with_context(|| format!("{}: only UTF-8 paths can be stored", path.display()))
}

fn to_path(text: String) -> PathBuf {
    PathBuf::from(text)
}

#[cfg(test)]
mod tests;
