//! The states of a job and the transitions that are legal. Pure.

use std::str::FromStr;

use finetuned_engine::ErrorKind;
use serde::{Deserialize, Serialize};
use strum::{Display, EnumIter, IntoEnumIterator, IntoStaticStr};

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Display, EnumIter, IntoStaticStr,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
/// Where a job is in its life.
pub enum State {
    /// Waits for a worker.
    Queued,
    /// A worker reads the model and the dataset.
    Preparing,
    /// A worker trains.
    Running,
    /// Stopped at a checkpoint until `resume`.
    Paused,
    /// Its output is there.
    Succeeded,
    /// An error ended it.
    Failed,
    /// The user ended it.
    Cancelled,
}

impl State {
    /// As JSON and the database spell it.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// A worker process belongs to the job.
    pub fn is_active(self) -> bool {
        matches!(self, State::Preparing | State::Running)
    }

    /// Nothing more happens by itself.
    pub fn is_ended(self) -> bool {
        matches!(self, State::Succeeded | State::Failed | State::Cancelled)
    }

    /// Whether a job may go from `self` to `next`.
    pub fn may_become(self, next: State) -> bool {
        use State::*;
        matches!(
            (self, next),
            // A worker is started; the user pauses or cancels; the job cannot be started at all.
            (Queued, Preparing | Paused | Cancelled | Failed)
            // The first step begins; the run was already finished; the worker stopped, died or was told to end.
            | (Preparing, Running | Succeeded | Queued | Paused | Failed | Cancelled)
            | (Running, Succeeded | Queued | Paused | Failed | Cancelled)
            | (Paused, Queued | Cancelled)
            // `retry`.
            | (Failed | Cancelled, Queued)
        )
    }
}

/// A change of a job's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The new state.
    pub to: State,
    /// For people: what happened, or what is to be done.
    pub why: String,
    /// What kind of error it was, if it was one.
    pub kind: Option<ErrorKind>,
}

impl Change {
    /// A change that is not an error.
    pub fn to(state: State, why: impl Into<String>) -> Change {
        Change { to: state, why: why.into(), kind: None }
    }

    /// A change that an error caused.
    pub fn by_error(state: State, kind: ErrorKind, why: impl Into<String>) -> Change {
        Change { to: state, why: why.into(), kind: Some(kind) }
    }
}

impl FromStr for State {
    type Err = String;

    fn from_str(text: &str) -> Result<State, String> {
        State::iter().find(|state| state.name() == text).ok_or_else(|| {
            let known: Vec<&str> = State::iter().map(State::name).collect();
            format!("`{text}` is not a state; there are {}", known.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for state in State::iter() {
            assert_eq!(state.name().parse::<State>(), Ok(state));
        }
        assert!("done".parse::<State>().is_err());
    }

    #[test]
    fn success_is_final_and_no_state_becomes_itself() {
        for state in State::iter() {
            assert!(!State::Succeeded.may_become(state));
            assert!(!state.may_become(state), "{state}");
        }
    }

    #[test]
    fn what_has_ended_only_restarts_through_the_queue() {
        for from in State::iter().filter(|s| s.is_ended() || *s == State::Paused) {
            for to in [State::Preparing, State::Running, State::Succeeded] {
                assert!(!from.may_become(to), "{from} to {to}");
            }
        }
    }

    #[test]
    fn every_active_job_can_be_stopped_in_every_way() {
        for from in [State::Preparing, State::Running] {
            for to in [State::Queued, State::Paused, State::Failed, State::Cancelled, State::Succeeded] {
                assert!(from.may_become(to), "{from} to {to}");
            }
        }
    }
}
