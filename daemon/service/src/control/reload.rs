//! The configuration in force, and reading it again.

use std::sync::Arc;

use tokio::sync::watch;

use super::Control;
use crate::config::{Config, Sources};
use crate::error::{Error, Result};
use crate::inbox::Claims;
use crate::logging::Level;
use crate::supervisor::Command;

/// The configuration in force, where it comes from, and what follows it at once.
pub struct Configuration {
    sources: Sources,
    level: Level,
    present: watch::Sender<Arc<Config>>,
}

impl Configuration {
    /// The configuration that the daemon starts with.
    pub fn new(sources: Sources, config: Arc<Config>, level: Level) -> Configuration {
        Configuration { sources, level, present: watch::Sender::new(config) }
    }

    /// The configuration in force.
    pub fn present(&self) -> Arc<Config> {
        self.present.borrow().clone()
    }
}

impl Control {
    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.configuration.present()
    }

    /// Reads the configuration again and hands it round.
    ///
    /// # Errors
    /// It has a mistake, or changes what cannot change: then the old one stays.
    pub async fn reload(&self) -> Result<Arc<Config>> {
        let sources = self.configuration.sources.clone();
        let config = Arc::new(tokio::task::spawn_blocking(move || Config::load(&sources)).await??);
        let old = self.config();
        for (key, is_same) in
            [("state_dir", config.state_dir == old.state_dir), ("control.socket", config.socket == old.socket)]
        {
            if !is_same {
                let message = format!("`{key}` has changed, which takes a restart");
                return Err(Error::conflict(message).remedy("nothing was changed"));
            }
        }
        self.configuration.present.send_replace(config.clone());
        self.configuration.level.set(config.log_level.into());
        self.parts.inbox.reconfigure(Claims::of(&config));
        self.tell(Command::Configure(config.clone())).await;
        Ok(config)
    }
}
