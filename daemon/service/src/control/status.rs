//! What the daemon does, for people and for the service manager.

use super::{Control, Phase};
use crate::api::{DaemonStatus, Health, Status, StatusQuery, SummaryView};
use crate::error::Result;
use crate::store::{Counts, JobQuery, JobSummary, State};

/// Jobs in an answer that was not told how many.
const SHOWN: usize = 20;
/// Most jobs in one answer.
const MOST: usize = 1000;
/// Jobs that the service manager's one line names.
const NAMED: usize = 4;

impl Control {
    /// Whether the daemon takes jobs.
    pub fn health(&self) -> Health {
        let status = if self.phase() == Phase::Works { "ok" } else { "stopping" };
        Health { status: status.into(), pid: std::process::id() }
    }

    /// # Errors
    /// The database cannot be read.
    pub async fn status(&self, query: StatusQuery) -> Result<Status> {
        let config = self.config();
        let limit = query.limit.unwrap_or(SHOWN).min(MOST);
        let (counts, jobs) = self.parts.store.read(move |store| Ok((store.counts()?, store.overview(limit)?))).await?;
        Ok(Status {
            daemon: DaemonStatus {
                version: env!("CARGO_PKG_VERSION").into(),
                pid: std::process::id(),
                uptime_seconds: self.started.elapsed().as_secs_f64(),
                state_dir: config.state_dir.clone(),
                config_file: config.file.clone(),
                stopping: self.phase() != Phase::Works,
            },
            inboxes: self.parts.inbox.statuses(),
            counts,
            jobs: jobs.into_iter().map(Into::into).collect(),
        })
    }

    /// # Errors
    /// The database cannot be read.
    pub async fn jobs(&self, page: JobQuery) -> Result<Vec<SummaryView>> {
        let jobs = self.parts.store.read(move |store| store.summaries(&page, MOST)).await?;
        Ok(jobs.into_iter().map(Into::into).collect())
    }

    /// One line for `systemctl status`.
    pub async fn status_line(&self) -> String {
        let read = self.parts.store.read(|store| Ok((store.counts()?, store.active(NAMED)?))).await;
        match read {
            Ok((counts, active)) => line_of(&counts, &active),
            Err(_) => "the database does not answer".into(),
        }
    }
}

fn line_of(counts: &Counts, active: &[JobSummary]) -> String {
    let count = |state: State| counts.get(&state).copied().unwrap_or(0);
    let mut parts: Vec<String> = active.iter().map(words_of).collect();
    let unnamed = (count(State::Running) + count(State::Preparing)).saturating_sub(active.len() as u64);
    if unnamed > 0 {
        parts.push(format!("{unnamed} more at work"));
    }
    match count(State::Queued) {
        0 if parts.is_empty() => "idle".into(),
        0 => parts.join(", "),
        waiting => {
            parts.push(format!("{waiting} waiting"));
            parts.join(", ")
        }
    }
}

fn words_of(job: &JobSummary) -> String {
    match job.progress.loss {
        Some(loss) => format!("job {} step {}/{} loss {loss:.2}", job.id, job.progress.step, job.progress.total_steps),
        None => format!("job {} {}", job.id, job.progress.phase.as_deref().unwrap_or("starting")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Progress;

    #[test]
    fn the_line_names_what_works_and_counts_what_waits() {
        assert_eq!(line_of(&Counts::new(), &[]), "idle");
        assert_eq!(line_of(&Counts::from([(State::Queued, 7), (State::Failed, 2)]), &[]), "7 waiting");
        let job = |id: i64, progress: Progress| JobSummary {
            id,
            name: "n".into(),
            state: State::Running,
            out: "o".into(),
            created_ms: 0,
            started_ms: None,
            ended_ms: None,
            attempts: 1,
            progress,
            error: None,
            error_kind: None,
        };
        let trains = Progress { step: 3, total_steps: 9, loss: Some(1.234), ..Progress::default() };
        let counts = Counts::from([(State::Queued, 1), (State::Running, 2), (State::Preparing, 1)]);
        let line = line_of(&counts, &[job(5, trains), job(6, Progress::default())]);
        assert_eq!(line, "job 5 step 3/9 loss 1.23, job 6 starting, 1 more at work, 1 waiting");
    }
}
