//! The protocol of systemd's `Type=notify`. Without `NOTIFY_SOCKET`, silence.

use std::cell::RefCell;
use std::time::Duration;

use sd_notify::NotifyState;

/// The way to the service manager, if there is one.
#[derive(Debug, Default)]
pub struct ServiceManager {
    last_status: RefCell<String>,
}

impl ServiceManager {
    /// As the environment says.
    pub fn of_process() -> ServiceManager {
        ServiceManager::default()
    }

    /// How often [`ServiceManager::alive`] is due: half the time allowed, or seldom if
    /// nobody watches.
    pub fn alive_every(&self) -> Duration {
        let allowed = sd_notify::watchdog_enabled().map_or(Duration::from_secs(3600), |allowed| allowed / 2);
        allowed.max(Duration::from_millis(100))
    }

    /// The daemon answers.
    pub fn ready(&self) {
        send(NotifyState::Ready);
    }

    /// The daemon's loop turns.
    pub fn alive(&self) {
        send(NotifyState::Watchdog);
    }

    /// One line that `systemctl status` shows; the same line twice is sent once.
    pub fn status(&self, line: &str) {
        if *self.last_status.borrow() != line {
            send(NotifyState::Status(&line.replace('\n', " ")));
            self.last_status.replace(line.to_string());
        }
    }

    /// The daemon ends.
    pub fn stopping(&self) {
        send(NotifyState::Stopping);
    }

    /// Asks for more time to stop in.
    pub fn extend(&self, time: Duration) {
        send(NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX)));
    }
}

/// A service manager that does not listen must not stop the service.
fn send(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!("the service manager was not told: {error}");
    }
}
