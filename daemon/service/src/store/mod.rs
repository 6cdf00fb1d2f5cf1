//! Jobs, their events, and what the inbox decided, in SQLite: one connection,
//! write-ahead log, every commit synced to the disk before it counts.
//!
//! [`Store`] is that connection. The daemon reaches it through a [`StoreHandle`],
//! whose thread makes one short call after another.

mod events;
mod files;
mod handle;
mod jobs;
mod plugins;
mod progress;
mod rows;
mod schema;
mod state;
mod summary;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;

use crate::error::{Context, Error, Result};

pub use events::EventRow;
pub use files::{Decision, FileRow};
pub use handle::StoreHandle;
pub use jobs::{Again, Job, NewJob};
pub use plugins::crashes_in;
pub use progress::Progress;
pub use state::{Change, State};
pub use summary::{Counts, JobQuery, JobSummary};

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

/// The database's one connection.
pub struct Store {
    connection: Connection,
    clock: Clock,
}

impl Store {
    /// Opens or creates the database.
    ///
    /// # Errors
    /// The file is on a network file system, where the log is not safe; it
    /// cannot be written; or it is of a later version.
    pub fn open(path: &Path) -> Result<Store> {
        if let Some(folder) = path.parent()
            && let Some(kind) = crate::filesystem::network_kind(folder)
        {
            let message = format!("{} is on {kind}: SQLite's log needs a local disk", folder.display());
            return Err(
                Error::storage(message).remedy("set state_dir to a local folder (inboxes may stay on the network)")
            );
        }
        Store::open_with_clock(path, wall_clock_ms)
    }

    /// The same with another clock.
    ///
    /// # Errors
    /// See [`Store::open`].
    pub fn open_with_clock(path: &Path, clock: Clock) -> Result<Store> {
        let mut connection =
            Connection::open(path).with_context(|| format!("cannot open the database {}", path.display()))?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", "ON")?;
        schema::migrate(&mut connection).with_context(|| format!("in {}", path.display()))?;
        Ok(Store { connection, clock })
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        (self.clock)()
    }
}

#[cfg(test)]
mod tests;
