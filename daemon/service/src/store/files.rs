//! What the inbox decided about each file, so that no restart decides twice.

use std::path::{Path, PathBuf};

use rusqlite::{OptionalExtension, Row, params};

use super::jobs::{NewJob, insert_job};
use super::{Store, path_text, to_path};

/// A decided file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRow {
    pub inbox: PathBuf,
    /// Relative to the inbox.
    pub path: PathBuf,
    pub stamp: String,
    pub companions: String,
    pub sha256: Option<String>,
    pub job: Option<i64>,
    pub refused: Option<String>,
    /// The receipt's path relative to the inbox.
    pub receipt: PathBuf,
}

/// What is decided about a settled file.
#[derive(Debug, Clone)]
pub enum Decision {
    /// Train it, unless there is a job of the same key.
    Train(Box<NewJob>),
    /// Not until it changes.
    Refuse(String),
}

impl Store {
    /// # Errors
    /// The database.
    pub fn file(&self, inbox: &Path, path: &Path) -> anyhow::Result<Option<FileRow>> {
        let sql = "SELECT inbox, path, stamp, companions, sha256, job, refused, receipt FROM files WHERE inbox = ? AND path = ?";
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.query_row([path_text(inbox)?, path_text(path)?], read_file).optional()?)
    }

    /// Every file that a job was, or would have been, trained from.
    ///
    /// # Errors
    /// The database.
    pub fn files_of_job(&self, job: i64) -> anyhow::Result<Vec<FileRow>> {
        let sql = "SELECT inbox, path, stamp, companions, sha256, job, refused, receipt FROM files WHERE job = ? ORDER BY decided_ms, path";
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.query_map([job], read_file)?.collect::<Result<_, _>>()?)
    }

    /// Every decision, oldest first.
    ///
    /// # Errors
    /// The database.
    pub fn files(&self) -> anyhow::Result<Vec<FileRow>> {
        let sql =
            "SELECT inbox, path, stamp, companions, sha256, job, refused, receipt FROM files ORDER BY decided_ms, path";
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.query_map([], read_file)?.collect::<Result<_, _>>()?)
    }

    /// Writes a decision and, in the same transaction, the job it leads to.
    /// Returns the job's id and whether it is new.
    ///
    /// # Errors
    /// The database.
    pub fn decide(&mut self, file: &FileRow, decision: &Decision) -> anyhow::Result<Option<(i64, bool)>> {
        let now = self.now_ms();
        let transaction = self.connection.transaction()?;
        let (job, refused) = match decision {
            Decision::Train(new) => (Some(insert_job(&transaction, new, now)?), None),
            Decision::Refuse(why) => (None, Some(why.as_str())),
        };
        transaction.execute(
            "INSERT INTO files (inbox, path, stamp, companions, sha256, job, refused, receipt, decided_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (inbox, path) DO UPDATE SET stamp = excluded.stamp, companions = excluded.companions,
                 sha256 = excluded.sha256, job = excluded.job, refused = excluded.refused,
                 receipt = excluded.receipt, decided_ms = excluded.decided_ms",
            params![
                path_text(&file.inbox)?,
                path_text(&file.path)?,
                file.stamp,
                file.companions,
                file.sha256,
                job.map(|(id, _)| id),
                refused,
                path_text(&file.receipt)?,
                now as i64,
            ],
        )?;
        transaction.commit()?;
        Ok(job)
    }

    /// The file was touched, its content is the same.
    ///
    /// # Errors
    /// The database.
    pub fn restamp(&mut self, inbox: &Path, path: &Path, stamp: &str) -> anyhow::Result<()> {
        self.connection.execute(
            "UPDATE files SET stamp = ? WHERE inbox = ? AND path = ?",
            params![stamp, path_text(inbox)?, path_text(path)?],
        )?;
        Ok(())
    }
}

fn read_file(row: &Row<'_>) -> rusqlite::Result<FileRow> {
    Ok(FileRow {
        inbox: to_path(row.get(0)?),
        path: to_path(row.get(1)?),
        stamp: row.get(2)?,
        companions: row.get(3)?,
        sha256: row.get(4)?,
        job: row.get(5)?,
        refused: row.get(6)?,
        receipt: to_path(row.get(7)?),
    })
}
