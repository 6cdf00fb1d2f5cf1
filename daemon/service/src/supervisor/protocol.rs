//! What a worker and the daemon say to each other: JSON lines from the worker's
//! stdout, words on its stdin.

use std::path::PathBuf;

use finetuned_engine::{Event, Summary, TrainRequest};
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
    pub models_dir: PathBuf,
    /// The data is read where it lies: it must have this hash.
    pub verify_sha256: Option<String>,
    /// Where tests of devices are remembered; none: the device is not tested.
    #[serde(default)]
    pub devices_file: Option<PathBuf>,
    /// Most memory of the process, where it is limited.
    pub memory_bytes: Option<u64>,
    /// Limits of a plugin's call, where the run loads plugins.
    #[serde(default)]
    pub plugin_limits: Option<PluginLimits>,
    /// The run. The base model of its recipe may be a name of the catalogue here.
    pub train: TrainRequest,
}

/// Limits of a plugin's call.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PluginLimits {
    pub seconds: f64,
    /// By how many bytes the process may grow; none: as it likes.
    pub memory_bytes: Option<u64>,
}

impl PluginLimits {
    pub fn of(config: &PluginsConfig) -> PluginLimits {
        PluginLimits { seconds: config.call_timeout.as_secs_f64(), memory_bytes: config.call_memory }
    }
}

/// What a worker says of itself; the engine's events stand beside these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum WorkerLine {
    Hello {
        pid: u32,
    },
    /// Every two seconds. `progress` grows with each sign of life of the engine.
    Heartbeat {
        progress: u64,
    },
    /// The last word, one of these five.
    Done {
        summary: Box<Summary>,
    },
    Stopped {
        step: usize,
    },
    Cancelled {
        step: usize,
    },
    /// The device is lost or not there; the job can go on when it is back.
    DeviceLost {
        message: String,
    },
    Failed {
        message: String,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    Worker(WorkerLine),
    Engine(Box<Event>),
}

/// Reads a line of a worker.
///
/// # Errors
/// It is neither.
pub fn parse(line: &str) -> Result<Line, serde_json::Error> {
    let value: serde_json::Value = serde_json::from_str(line)?;
    let name = value.get("event").and_then(serde_json::Value::as_str).unwrap_or_default();
    if matches!(name, "hello" | "heartbeat" | "done" | "stopped" | "cancelled" | "device_lost" | "failed") {
        return serde_json::from_value(value).map(Line::Worker);
    }
    serde_json::from_value(value).map(|event| Line::Engine(Box::new(event)))
}

/// What the daemon asks of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// The daemon ends: checkpoint, and go on at its next start.
    Stop,
    /// Checkpoint, and wait for `resume`.
    Pause,
    Cancel,
}

impl Ask {
    /// The line on the worker's stdin. Its end means `stop`.
    pub fn word(self) -> &'static str {
        match self {
            Ask::Stop | Ask::Pause => "stop\n",
            Ask::Cancel => "cancel\n",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_back() {
        for line in [
            WorkerLine::Hello { pid: 7 },
            WorkerLine::Heartbeat { progress: 3 },
            WorkerLine::Stopped { step: 4 },
            WorkerLine::Cancelled { step: 4 },
            WorkerLine::DeviceLost { message: "the device vulkan:0 was lost".into() },
            WorkerLine::Failed { message: "a\nb".into() },
        ] {
            let text = serde_json::to_string(&line).unwrap();
            assert!(!text.contains('\n'));
            assert_eq!(parse(&text).unwrap(), Line::Worker(line));
        }
        let event = Event::Checkpoint { step: 9 };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(parse(&text).unwrap(), Line::Engine(Box::new(event)));
        assert!(parse("not json").is_err());
        assert!(parse("{\"event\":\"unheard_of\"}").is_err());
    }
}
