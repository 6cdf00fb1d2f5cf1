//! What the daemon says on stderr. systemd adds the time itself.

use std::io::IsTerminal;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

/// Changes the level while the daemon runs.
pub struct Level(Option<reload::Handle<LevelFilter, Registry>>);

impl Level {
    /// For tests and short commands, which have no log.
    pub fn fixed() -> Level {
        Level(None)
    }

    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub fn set(&self, level: &str) {
        if let Some(handle) = &self.0 {
            let _ = handle.reload(filter(level));
        }
    }
}

/// Starts logging; once a process.
pub fn start(level: &str) -> Level {
    let (filter, handle) = reload::Layer::new(filter(level));
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(std::io::stderr().is_terminal());
    // Under systemd the journal has the time and the process.
    let started = if std::env::var_os("JOURNAL_STREAM").is_some() {
        Registry::default().with(filter).with(lines.without_time()).try_init()
    } else {
        Registry::default().with(filter).with(lines).try_init()
    };
    Level(started.is_ok().then_some(handle))
}

fn filter(level: &str) -> LevelFilter {
    level.parse().unwrap_or(LevelFilter::INFO)
}
