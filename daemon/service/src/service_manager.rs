//! The protocol of systemd's `Type=notify`: one datagram a message to the
//! socket that `NOTIFY_SOCKET` names. Without that variable, silence.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

/// The way to the service manager, if there is one.
#[derive(Debug)]
pub struct ServiceManager {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
    last_status: std::sync::Mutex<String>,
}

impl ServiceManager {
    /// As the environment says.
    pub fn of_process() -> ServiceManager {
        let variable = |name: &str| std::env::var(name).ok();
        ServiceManager::new(variable("NOTIFY_SOCKET"), variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"))
    }

    /// `watchdog_pid` keeps a child from answering for its parent.
    pub fn new(socket: Option<String>, watchdog_usec: Option<String>, watchdog_pid: Option<String>) -> ServiceManager {
        let ours = watchdog_pid.is_none_or(|pid| pid == std::process::id().to_string());
        let watchdog = watchdog_usec
            .and_then(|usec| usec.parse().ok())
            .filter(|&usec| usec > 0 && ours)
            .map(Duration::from_micros);
        let socket = socket.and_then(|address| {
            connect(&address).map_err(|error| tracing::warn!("NOTIFY_SOCKET {address}: {error}")).ok()
        });
        ServiceManager { socket, watchdog, last_status: std::sync::Mutex::default() }
    }

    /// How often [`ServiceManager::alive`] is due: half the time allowed.
    pub fn alive_every(&self) -> Option<Duration> {
        self.watchdog.map(|allowed| allowed / 2)
    }

    pub fn ready(&self) {
        self.send("READY=1");
    }

    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// One line that `systemctl status` shows; the same line twice is sent once.
    pub fn status(&self, line: &str) {
        let mut last = crate::lock::lock(&self.last_status);
        if *last != line {
            *last = line.to_string();
            self.send(&format!("STATUS={}", line.replace('\n', " ")));
        }
    }

    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// Asks for more time to stop in.
    pub fn extend(&self, time: Duration) {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}", time.as_micros()));
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket {
            // A service manager that does not listen must not stop the service.
            let _ = socket.send(message.as_bytes());
        }
    }
}

fn connect(address: &str) -> std::io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    #[cfg(target_os = "linux")]
    if let Some(name) = address.strip_prefix('@') {
        use std::os::linux::net::SocketAddrExt;
        socket.connect_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)?;
        return Ok(socket);
    }
    socket.connect(PathBuf::from(address))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 1024];
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let read = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    }

    #[test]
    fn messages_arrive_as_systemd_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let manager = ServiceManager::new(Some(path.display().to_string()), Some("30000000".into()), None);
        assert_eq!(manager.alive_every(), Some(Duration::from_secs(15)));
        manager.ready();
        manager.status("job 7 step 1/9");
        manager.status("job 7 step 1/9");
        manager.alive();
        manager.stopping();
        let received: Vec<String> = (0..4).map(|_| receive(&socket)).collect();
        assert_eq!(received, ["READY=1", "STATUS=job 7 step 1/9", "WATCHDOG=1", "STOPPING=1"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn abstract_sockets_are_reached_too() {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("finetuned-test-{}", std::process::id());
        let socket =
            UnixDatagram::bind_addr(&std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        ServiceManager::new(Some(format!("@{name}")), None, None).ready();
        assert_eq!(receive(&socket), "READY=1");
    }

    #[test]
    fn without_a_manager_there_is_silence() {
        let manager = ServiceManager::new(None, Some("5".into()), Some("1".into()));
        manager.ready();
        assert_eq!(manager.alive_every(), None);
    }
}
