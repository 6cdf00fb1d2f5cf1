//! What a worker and the daemon say to each other: JSON lines from the worker's
//! stdout, orders on its stdin.

use std::path::PathBuf;

use finetuned_engine::{ErrorKind, Event, Summary, TrainRequest};
use serde::{Deserialize, Serialize};

use crate::config::PluginsConfig;

/// The file in a job's folder that tells a worker what to do.
pub const REQUEST_FILE: &str = "request.json";
/// Held by a worker as long as it lives.
pub const LOCK_FILE: &str = "worker.lock";
/// What workers wrote to stderr.
pub const LOG_FILE: &str = "worker.log";

/// A run, before its base model is found: what a worker and the foreground
/// command both start from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRequest {
    /// Where base models are.
    pub models_dir: PathBuf,
    /// The data is read in place: it must have this hash.
    pub verify_sha256: Option<String>,
    /// Where tests of devices are remembered; none: the device is not tested.
    #[serde(default)]
    pub devices_file: Option<PathBuf>,
    /// Most memory of the process, if it is limited.
    pub memory_bytes: Option<u64>,
    /// Limits of a plugin's call, if the run loads plugins.
    #[serde(default)]
    pub plugin_limits: Option<PluginLimits>,
    /// The run. The base model of its recipe may be a name of the catalogue here.
    pub train: TrainRequest,
}

/// Limits of a plugin's call.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PluginLimits {
    /// Longest time of one call.
    pub seconds: f64,
    /// By how many bytes the process may grow; none: without limit.
    pub memory_bytes: Option<u64>,
}

impl PluginLimits {
    /// As the configuration says.
    pub fn of(config: &PluginsConfig) -> PluginLimits {
        PluginLimits { seconds: config.call_timeout.as_secs_f64(), memory_bytes: config.call_memory }
    }
}

/// What a worker says of itself, between the engine's events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum WorkerLine {
    /// The first line.
    Hello {
        /// The worker's process id.
        pid: u32,
    },
    /// Every two seconds. `progress` grows with each sign of life of the engine.
    Heartbeat {
        /// A count.
        progress: u64,
    },
    /// The last line is this one or one of the next three.
    Done {
        /// How the run ended.
        summary: Box<Summary>,
    },
    /// It has checkpointed as ordered.
    Stopped {
        /// The last step that was done.
        step: usize,
    },
    /// It has ended as ordered.
    Cancelled {
        /// The last step that was done.
        step: usize,
    },
    /// After [`ErrorKind::Device`] the job can go on when the device is back.
    Failed {
        /// What kind of error it was.
        kind: ErrorKind,
        /// For people.
        message: String,
    },
}

/// A line of a worker's stdout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// Of the worker itself.
    Worker { worker: WorkerLine },
    /// An event of the engine.
    Engine(Box<Event>),
}

impl From<WorkerLine> for Line {
    fn from(worker: WorkerLine) -> Line {
        Line::Worker { worker }
    }
}

/// A line on a worker's stdin. The end of stdin means [`Order::Stop`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Checkpoint and end.
    Stop,
    /// End without a checkpoint.
    Cancel,
}

impl Order {
    /// The order's line, without its end.
    pub fn line(self) -> &'static str {
        match self {
            Order::Stop => "stop",
            Order::Cancel => "cancel",
        }
    }

    /// The order that a line gives; another line is not an order.
    pub fn of_line(line: &str) -> Option<Order> {
        [Order::Stop, Order::Cancel].into_iter().find(|order| order.line() == line.trim())
    }
}

/// What the daemon asks of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// The daemon ends: checkpoint, and go on at its next start.
    Stop,
    /// Checkpoint, and wait for `resume`.
    Pause,
    /// End without a checkpoint.
    Cancel,
}

impl Ask {
    /// What the worker is told.
    pub fn order(self) -> Order {
        match self {
            Ask::Stop | Ask::Pause => Order::Stop,
            Ask::Cancel => Order::Cancel,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_back() {
        let worker_lines = [
            WorkerLine::Hello { pid: 7 },
            WorkerLine::Heartbeat { progress: 3 },
            WorkerLine::Stopped { step: 4 },
            WorkerLine::Cancelled { step: 4 },
            WorkerLine::Failed { kind: ErrorKind::Device, message: "a\nb".into() },
        ];
        let events = [Event::Checkpoint { step: 9 }, Event::Note { message: "n".into() }];
        let lines = worker_lines.map(Line::from).into_iter().chain(events.map(|event| Line::Engine(Box::new(event))));
        for line in lines {
            let text = serde_json::to_string(&line).unwrap();
            assert!(!text.contains('\n'));
            assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line);
        }
        assert!(serde_json::from_str::<Line>("not json").is_err());
        assert!(serde_json::from_str::<Line>("{\"event\":\"unheard_of\"}").is_err());
    }

    #[test]
    fn orders_read_back() {
        for order in [Order::Stop, Order::Cancel] {
            assert_eq!(Order::of_line(&format!("{}\n", order.line())), Some(order));
        }
        assert_eq!(Order::of_line("go on"), None);
    }
}
