//! What is sent over the control socket, as JSON.

use std::path::PathBuf;

use finetuned_engine::ErrorKind;
use serde::{Deserialize, Serialize};

use crate::inbox::InboxStatus;
use crate::store::{Counts, Job, JobSummary};

/// Whether the daemon is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `ok`, or `stopping`.
    pub status: String,
    /// The process id of the daemon.
    pub pid: u32,
}

/// What the daemon does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon itself.
    pub daemon: DaemonStatus,
    /// What the last scan of each inbox found.
    pub inboxes: Vec<InboxStatus>,
    /// Jobs by state; a state without jobs is not there.
    pub counts: Counts,
    /// The jobs to see first.
    pub jobs: Vec<SummaryView>,
}

impl Status {
    /// Jobs that are not among [`Status::jobs`].
    pub fn more(&self) -> u64 {
        self.counts.values().sum::<u64>().saturating_sub(self.jobs.len() as u64)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
/// The daemon itself.
pub struct DaemonStatus {
    /// Of the program.
    pub version: String,
    /// The process id of the daemon.
    pub pid: u32,
    /// Since its start.
    pub uptime_seconds: f64,
    /// The folder of everything that it keeps.
    pub state_dir: PathBuf,
    /// The file that was read, if there is one.
    pub config_file: Option<PathBuf>,
    /// It was told to stop and waits for its workers.
    pub stopping: bool,
}

/// A job and what can be worked out of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View<J> {
    #[serde(flatten)]
    /// The row of the database.
    pub job: J,
    /// Until the last step at the present speed, if a worker trains.
    pub seconds_left: Option<f64>,
}

/// A job in full.
pub type JobView = View<Job>;
/// A job in short, as lists have it.
pub type SummaryView = View<JobSummary>;

impl From<Job> for JobView {
    fn from(job: Job) -> JobView {
        let seconds_left = job.progress.seconds_left().filter(|_| job.state.is_active());
        View { job, seconds_left }
    }
}

impl From<JobSummary> for SummaryView {
    fn from(job: JobSummary) -> SummaryView {
        let seconds_left = job.progress.seconds_left().filter(|_| job.state.is_active());
        View { job, seconds_left }
    }
}

/// A dataset to train.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// Absolute.
    pub data: PathBuf,
    #[serde(default)]
    /// Validation rows, as an absolute path.
    pub validation: Option<PathBuf>,
    /// A PEFT adapter to start from.
    #[serde(default)]
    pub adapter: Option<PathBuf>,
    #[serde(default)]
    /// Its name; the file's if there is none.
    pub name: Option<String>,
    /// A layer over the daemon's `[recipe]`.
    #[serde(default)]
    pub recipe: toml::Table,
}

/// The job that a submission makes or finds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submitted {
    #[serde(flatten)]
    /// The new job, or the one that was there.
    pub job: JobView,
    /// `false`: there was a job of the same data and recipe.
    pub is_new: bool,
}

/// How a job is started again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Throw away the checkpoints.
    pub fresh: bool,
    /// Go on although a plugin is another build than the one it began with.
    pub accept_plugin_change: bool,
}

/// A configuration that was read again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The file that was read, if there is one.
    pub config_file: Option<PathBuf>,
    /// What is odd and not a mistake.
    pub warnings: Vec<String>,
}

/// Every error: `{"error": {"code": "not-found", "message": "there is no job 9"}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorWords,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
/// What went wrong.
pub struct ErrorWords {
    /// The kind of the error.
    pub code: ErrorKind,
    /// For people.
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    /// What the user can do, if the message does not say it.
    pub remedy: Option<String>,
}
