//! What an ended worker means for its job. Pure.

use super::protocol::{Ask, WorkerLine};
use crate::store::State;

/// How a worker process ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// Why the daemon killed it, if it did.
    pub killed_because: Option<String>,
}

/// The state the job goes to, and why. `last` is the worker's last word, if it
/// had one; `words` the end of its stderr.
pub fn verdict(last: Option<&WorkerLine>, exit: &Exit, asked: Option<Ask>, words: &str) -> (State, String) {
    match (last, asked) {
        (Some(WorkerLine::Done { .. }), _) => (State::Succeeded, "finished".into()),
        (_, Some(Ask::Cancel)) => (State::Cancelled, "cancelled by the user".into()),
        (Some(WorkerLine::Cancelled { step }), _) => (State::Cancelled, format!("cancelled at step {step}")),
        (Some(WorkerLine::Stopped { step }), Some(Ask::Pause)) => (State::Paused, format!("paused at step {step}")),
        (Some(WorkerLine::Stopped { step }), _) => {
            (State::Queued, format!("stopped at step {step}, goes on from there"))
        }
        (Some(WorkerLine::Failed { message }), _) => (State::Failed, message.clone()),
        // Asked to stop, killed because it took too long: nothing is lost but
        // the steps since its last checkpoint.
        (_, Some(Ask::Pause)) if exit.killed_because.is_some() => {
            (State::Paused, "paused; it goes on from its last checkpoint".into())
        }
        (_, Some(Ask::Stop)) if exit.killed_because.is_some() => {
            (State::Queued, "goes on from its last checkpoint".into())
        }
        _ => (State::Failed, death(exit, words)),
    }
}

fn death(exit: &Exit, words: &str) -> String {
    let mut text = match (&exit.killed_because, exit.signal, exit.code) {
        (Some(why), ..) => format!("the worker was killed: {why}"),
        (None, Some(9), _) => "the worker was killed (signal 9). If you did not, the kernel did, for want of memory: \
             lower train.micro_batch_size or train.sequence_length, set train.gradient_checkpointing, or use method = \"qlora\""
            .into(),
        (None, Some(signal), _) => format!("the worker died of signal {signal} ({})", signal_name(signal)),
        (None, None, Some(code)) => format!("the worker ended with exit status {code} and without a word"),
        (None, None, None) => "the worker ended in an unknown way".into(),
    };
    if !words.trim().is_empty() {
        text.push_str("\nlast words:\n");
        text.push_str(words.trim_end());
    }
    text
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        6 => "abort",
        7 => "bus error",
        8 => "arithmetic error",
        11 => "segmentation fault",
        15 => "terminated",
        _ => "signal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn died(signal: i32) -> Exit {
        Exit { signal: Some(signal), ..Exit::default() }
    }

    #[test]
    fn a_death_fails_with_the_last_words() {
        let (state, why) = verdict(None, &died(11), None, "about to fall\n");
        assert_eq!(state, State::Failed);
        assert!(why.contains("segmentation fault") && why.contains("about to fall"), "{why}");
        assert!(verdict(None, &died(9), None, "").1.contains("memory"));
        assert_eq!(verdict(None, &Exit { code: Some(0), ..Exit::default() }, None, "").0, State::Failed);
    }

    #[test]
    fn the_same_stop_is_a_pause_or_a_wait_as_was_asked() {
        let stopped = WorkerLine::Stopped { step: 3 };
        let exit = Exit { code: Some(0), ..Exit::default() };
        assert_eq!(verdict(Some(&stopped), &exit, Some(Ask::Pause), "").0, State::Paused);
        assert_eq!(verdict(Some(&stopped), &exit, Some(Ask::Stop), "").0, State::Queued);
        assert_eq!(verdict(Some(&stopped), &exit, None, "").0, State::Queued);
    }

    #[test]
    fn slow_stops_lose_no_job() {
        let killed = Exit { signal: Some(9), killed_because: Some("slow".into()), ..Exit::default() };
        assert_eq!(verdict(None, &killed, Some(Ask::Stop), "").0, State::Queued);
        assert_eq!(verdict(None, &killed, Some(Ask::Pause), "").0, State::Paused);
        assert_eq!(verdict(None, &killed, Some(Ask::Cancel), "").0, State::Cancelled);
        let (state, why) = verdict(None, &killed, None, "");
        assert_eq!(state, State::Failed);
        assert!(why.contains("slow"));
        // A crash while stopping is a crash.
        assert_eq!(verdict(None, &died(11), Some(Ask::Stop), "").0, State::Failed);
    }

    #[test]
    fn an_error_is_the_engines_own_words() {
        let failed = WorkerLine::Failed { message: "line 3: no answer".into() };
        let exit = Exit { code: Some(1), ..Exit::default() };
        assert_eq!(verdict(Some(&failed), &exit, None, "noise"), (State::Failed, "line 3: no answer".into()));
    }
}
