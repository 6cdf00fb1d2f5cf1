//! What the inbox decided about each file, so that no restart decides twice.

use std::path::{Path, PathBuf};

use rusqlite::{OptionalExtension, Row, params};

use super::Store;
use super::jobs::{NewJob, insert_job};
use super::rows::{PathText, path_text};
use crate::error::Result;

/// A decided file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRow {
    /// The watched folder.
    pub inbox: PathBuf,
    /// Relative to the inbox.
    pub path: PathBuf,
    /// How the data looked when it was decided on.
    pub stamp: String,
    /// How its sidecar and folder recipe looked.
    pub companions: String,
    /// Of the data, and where the validation file's snapshot is; none if refused.
    pub sha256: Option<String>,
    /// The job it is trained as.
    pub job: Option<i64>,
    /// Why it is not trained.
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
    /// The database cannot be read.
    pub fn file(&self, inbox: &Path, path: &Path) -> Result<Option<FileRow>> {
        let sql = "SELECT * FROM files WHERE inbox = ? AND path = ?";
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.query_row([path_text(inbox)?, path_text(path)?], read_file).optional()?)
    }

    /// Every file that a job was, or would have been, trained from.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn files_of_job(&self, job: i64) -> Result<Vec<FileRow>> {
        let sql = "SELECT * FROM files WHERE job = ? ORDER BY decided_ms, path";
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.query_map([job], read_file)?.collect::<rusqlite::Result<_>>()?)
    }

    /// Every decision, oldest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn files(&self) -> Result<Vec<FileRow>> {
        let sql = "SELECT * FROM files ORDER BY decided_ms, path";
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.query_map([], read_file)?.collect::<rusqlite::Result<_>>()?)
    }

    /// Writes a decision and, in the same transaction, the job it leads to.
    /// Returns the job's id and whether it is new.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn decide(&mut self, file: &FileRow, decision: &Decision) -> Result<Option<(i64, bool)>> {
        let now = self.now_ms();
        let transaction = self.connection.transaction()?;
        let (job, refused) = match decision {
            Decision::Train(new) => (Some(insert_job(&transaction, new, now)?), None),
            Decision::Refuse(why) => (None, Some(why.as_str())),
        };
        transaction.execute(
            "INSERT INTO files (inbox, path, stamp, companions, sha256, job, refused, receipt, decided_ms)
             VALUES (:inbox, :path, :stamp, :companions, :sha256, :job, :refused, :receipt, :decided_ms)
             ON CONFLICT (inbox, path) DO UPDATE SET stamp = excluded.stamp, companions = excluded.companions,
                 sha256 = excluded.sha256, job = excluded.job, refused = excluded.refused,
                 receipt = excluded.receipt, decided_ms = excluded.decided_ms",
            rusqlite::named_params! {
                ":inbox": path_text(&file.inbox)?,
                ":path": path_text(&file.path)?,
                ":stamp": file.stamp,
                ":companions": file.companions,
                ":sha256": file.sha256,
                ":job": job.map(|(id, _)| id),
                ":refused": refused,
                ":receipt": path_text(&file.receipt)?,
                ":decided_ms": now as i64,
            },
        )?;
        transaction.commit()?;
        Ok(job)
    }

    /// The file was touched, its content is the same.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn restamp(&mut self, inbox: &Path, path: &Path, stamp: &str) -> Result<()> {
        self.connection.execute(
            "UPDATE files SET stamp = ? WHERE inbox = ? AND path = ?",
            params![stamp, path_text(inbox)?, path_text(path)?],
        )?;
        Ok(())
    }
}

fn read_file(row: &Row<'_>) -> rusqlite::Result<FileRow> {
    let path = |name: &str| row.get::<_, PathText>(name).map(|path| path.0);
    Ok(FileRow {
        inbox: path("inbox")?,
        path: path("path")?,
        stamp: row.get("stamp")?,
        companions: row.get("companions")?,
        sha256: row.get("sha256")?,
        job: row.get("job")?,
        refused: row.get("refused")?,
        receipt: path("receipt")?,
    })
}
