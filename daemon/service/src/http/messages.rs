//! What goes over the control socket, as JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::inbox::InboxStatus;
use crate::store::Job;

/// `GET /status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub daemon: DaemonStatus,
    pub inboxes: Vec<InboxStatus>,
    /// Oldest first.
    pub jobs: Vec<JobView>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DaemonStatus {
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: f64,
    pub state_dir: PathBuf,
    pub config_file: Option<PathBuf>,
    /// It was told to stop and waits for its workers.
    pub stopping: bool,
}

/// A job and what can be worked out of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    #[serde(flatten)]
    pub job: Job,
    pub seconds_left: Option<f64>,
}

impl From<Job> for JobView {
    fn from(job: Job) -> JobView {
        let seconds_left = job.progress.seconds_left().filter(|_| job.state.is_active());
        JobView { job, seconds_left }
    }
}

/// `POST /jobs`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// Absolute.
    pub data: PathBuf,
    #[serde(default)]
    pub validation: Option<PathBuf>,
    /// A PEFT adapter to start from.
    #[serde(default)]
    pub adapter: Option<PathBuf>,
    #[serde(default)]
    pub name: Option<String>,
    /// A layer over the daemon's `[recipe]`.
    #[serde(default)]
    pub recipe: toml::Table,
}

/// The answer to `POST /jobs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submitted {
    #[serde(flatten)]
    pub job: JobView,
    /// `false`: there was a job of the same data and recipe.
    pub is_new: bool,
}

/// `POST /jobs/{id}/retry`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Throw away the checkpoints.
    pub fresh: bool,
    /// Go on although a plugin is another build than the one it began with.
    pub accept_plugin_change: bool,
}

/// `POST /reload`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reloaded {
    pub config_file: Option<PathBuf>,
    pub warnings: Vec<String>,
}

/// Every error: `{"error": {"code": "not_found", "message": "there is no job 9"}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: ErrorWords,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorWords {
    pub code: String,
    pub message: String,
}
