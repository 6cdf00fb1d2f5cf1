//! What an ended worker means for its job. Pure.

use finetuned_engine::ErrorKind;
use finetuned_plugin_api::abi::calls;

use crate::protocol::{Ask, WorkerLine};
use crate::store::{Change, State};

/// How a worker process ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// Why the daemon killed it, if it did.
    pub killed_because: Option<String>,
}

/// The state that the job goes to, and why. `last` is the worker's last line, if it
/// had one; `words` the end of its stderr; `call` the call of a plugin that it ended in.
pub fn verdict(last: Option<&WorkerLine>, exit: &Exit, asked: Option<Ask>, words: &str, call: Option<&str>) -> Change {
    match (last, asked) {
        (Some(WorkerLine::Done { .. }), _) => Change::to(State::Succeeded, "finished"),
        (_, Some(Ask::Cancel)) => Change::to(State::Cancelled, "cancelled by the user"),
        (Some(WorkerLine::Cancelled { step }), _) => Change::to(State::Cancelled, format!("cancelled at step {step}")),
        (Some(WorkerLine::Stopped { step }), Some(Ask::Pause)) => {
            Change::to(State::Paused, format!("paused at step {step}"))
        }
        (Some(WorkerLine::Stopped { step }), _) => {
            Change::to(State::Queued, format!("stopped at step {step}, goes on from there"))
        }
        (Some(WorkerLine::Failed { kind: ErrorKind::Device, message }), _) => Change::by_error(
            State::Paused,
            ErrorKind::Device,
            format!("{message}; `finetune resume` goes on from the last checkpoint once the device is back"),
        ),
        (Some(WorkerLine::Failed { kind, message }), _) => Change::by_error(State::Failed, *kind, message.clone()),
        // Asked to stop, killed because it took too long: nothing is lost but
        // the steps since its last checkpoint.
        (_, Some(Ask::Pause)) if exit.killed_because.is_some() => {
            Change::to(State::Paused, "paused; it goes on from its last checkpoint")
        }
        (_, Some(Ask::Stop)) if exit.killed_because.is_some() => {
            Change::to(State::Queued, "goes on from its last checkpoint")
        }
        _ => match call {
            Some(call) => Change::by_error(State::Failed, ErrorKind::Plugin, death_in_call(exit, words, call)),
            None => Change::by_error(State::Failed, ErrorKind::Internal, death(exit, words)),
        },
    }
}

/// The worker's process ended inside a plugin's call.
fn death_in_call(exit: &Exit, words: &str, call: &str) -> String {
    // The watching thread has noted the cause itself.
    if matches!(exit.code, Some(calls::EXIT_DEADLINE | calls::EXIT_MEMORY)) && exit.killed_because.is_none() {
        return call.to_string();
    }
    let mut text = match (&exit.killed_because, exit.signal, exit.code) {
        (Some(why), ..) => format!("{call}: the worker was killed: {why}"),
        (None, Some(signal), _) => {
            format!("{call}: the worker died of signal {signal} ({})", crate::words::signal(signal))
        }
        (None, None, Some(code)) => format!("{call}: it ended the worker with exit status {code}"),
        (None, None, None) => format!("{call}: the worker ended in an unknown way"),
    };
    if !words.trim().is_empty() {
        text.push_str("\nits last lines:\n");
        text.push_str(words.trim_end());
    }
    text
}

fn death(exit: &Exit, words: &str) -> String {
    let mut text = match (&exit.killed_because, exit.signal, exit.code) {
        (Some(why), ..) => {
            format!("the worker was killed: {why}; `finetune retry` goes on from its last checkpoint")
        }
        (None, Some(9), _) => "the worker was killed (signal 9). If you did not, the kernel did, for want of memory: \
             lower train.micro_batch_size or train.sequence_length, set train.gradient_checkpointing, or use method = \"qlora\""
            .into(),
        (None, Some(signal), _) => format!("the worker died of signal {signal} ({})", crate::words::signal(signal)),
        (None, None, Some(code)) => format!("the worker ended with exit status {code} and without a word"),
        (None, None, None) => "the worker ended in an unknown way".into(),
    };
    if !words.trim().is_empty() {
        text.push_str("\nits last lines:\n");
        text.push_str(words.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn died(signal: i32) -> Exit {
        Exit { signal: Some(signal), ..Exit::default() }
    }

    #[test]
    fn a_death_fails_with_the_last_words() {
        let Change { to, why, kind } = verdict(None, &died(11), None, "about to fall\n", None);
        assert_eq!((to, kind), (State::Failed, Some(ErrorKind::Internal)));
        assert!(why.contains("segmentation fault") && why.contains("about to fall"), "{why}");
        assert!(verdict(None, &died(9), None, "", None).why.contains("memory"));
        assert_eq!(verdict(None, &Exit { code: Some(0), ..Exit::default() }, None, "", None).to, State::Failed);
    }

    #[test]
    fn a_death_inside_a_plugin_names_plugin_step_and_cause() {
        let call = Some("plugin mine 0.1.0, step 3, in evaluate");
        let why = |exit: Exit, call| {
            let change = verdict(None, &exit, None, "", call);
            assert_eq!(change.kind, Some(ErrorKind::Plugin));
            change.why
        };
        assert_eq!(
            why(died(11), call),
            "plugin mine 0.1.0, step 3, in evaluate: the worker died of signal 11 (segmentation fault)"
        );
        let left = Exit { code: Some(0), ..Exit::default() };
        assert_eq!(why(left, call), "plugin mine 0.1.0, step 3, in evaluate: it ended the worker with exit status 0");
        let late = Exit { code: Some(calls::EXIT_DEADLINE), ..Exit::default() };
        let note = "plugin mine 0.1.0, in evaluate: did not return within 1.0 s";
        assert_eq!(why(late, Some(note)), note);
    }

    #[test]
    fn the_same_stop_is_a_pause_or_a_wait_as_was_asked() {
        let stopped = WorkerLine::Stopped { step: 3 };
        let exit = Exit { code: Some(0), ..Exit::default() };
        assert_eq!(verdict(Some(&stopped), &exit, Some(Ask::Pause), "", None).to, State::Paused);
        assert_eq!(verdict(Some(&stopped), &exit, Some(Ask::Stop), "", None).to, State::Queued);
        assert_eq!(verdict(Some(&stopped), &exit, None, "", None).to, State::Queued);
    }

    #[test]
    fn slow_stops_lose_no_job() {
        let killed = Exit { signal: Some(9), killed_because: Some("slow".into()), ..Exit::default() };
        assert_eq!(verdict(None, &killed, Some(Ask::Stop), "", None).to, State::Queued);
        assert_eq!(verdict(None, &killed, Some(Ask::Pause), "", None).to, State::Paused);
        assert_eq!(verdict(None, &killed, Some(Ask::Cancel), "", None).to, State::Cancelled);
        let failed = verdict(None, &killed, None, "", None);
        assert_eq!(failed.to, State::Failed);
        assert!(failed.why.contains("slow"));
        // A crash while stopping is a crash.
        assert_eq!(verdict(None, &died(11), Some(Ask::Stop), "", None).to, State::Failed);
    }

    #[test]
    fn a_lost_device_pauses_the_job_and_says_so() {
        let message = "vulkan:0 a card: the device is lost".into();
        let last = WorkerLine::Failed { kind: ErrorKind::Device, message };
        let Change { to, why, kind } = verdict(Some(&last), &Exit { code: Some(1), ..Exit::default() }, None, "", None);
        assert_eq!((to, kind), (State::Paused, Some(ErrorKind::Device)));
        assert!(why.contains("the device is lost") && why.contains("finetune resume"), "{why}");
    }

    #[test]
    fn an_error_is_the_engines_own_words() {
        let exit = Exit { code: Some(1), ..Exit::default() };
        for kind in [ErrorKind::BadInput, ErrorKind::OutOfMemory, ErrorKind::NotFinite] {
            let failed = WorkerLine::Failed { kind, message: "line 3: no answer".into() };
            let change = verdict(Some(&failed), &exit, None, "noise", None);
            assert_eq!(change, Change::by_error(State::Failed, kind, "line 3: no answer"));
        }
    }
}
