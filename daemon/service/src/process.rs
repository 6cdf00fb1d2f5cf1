//! This process and its children: limits, deadlines, and how one ended in words.

use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use crate::error::{Context, Result};

/// A limit of the kernel: an allocation beyond it fails in this process, and
/// nothing else suffers.
///
/// # Errors
/// The kernel refuses.
pub fn limit_memory(bytes: u64) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let present = getrlimit(Resource::Data);
    let limit = Rlimit { current: Some(bytes), maximum: present.maximum };
    let set = setrlimit(Resource::Data, limit).map_err(std::io::Error::from);
    set.with_context(|| format!("cannot limit memory to {bytes} bytes"))
}

/// Waits for `child` until the deadline and kills it then. `None`: it was killed.
///
/// The deadline is looked at every few milliseconds: a handler of SIGCHLD would stand
/// in the way of tokio's.
///
/// # Errors
/// The system does not say how the child does.
pub fn wait_until(child: &mut Child, deadline: Instant, every: Duration) -> std::io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Ok(None);
        }
        std::thread::sleep(every);
    }
}

/// `signal 11 (segmentation fault)`, `exit status 1`.
pub fn ending(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("signal {signal} ({})", crate::words::signal(signal)),
        (None, code) => format!("exit status {}", code.unwrap_or_default()),
    }
}

/// This very program, even if an update has replaced its file meanwhile.
///
/// # Errors
/// The system does not say.
pub fn own_program() -> Result<PathBuf> {
    let own = PathBuf::from("/proc/self/exe");
    if own.exists() {
        return Ok(own);
    }
    std::env::current_exe().context("the program's own path is unknown")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_child_that_is_late_is_killed() {
        let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let every = Duration::from_millis(1);
        assert_eq!(wait_until(&mut child, Instant::now(), every).unwrap(), None);
        assert!(child.try_wait().unwrap().is_some(), "it is not there any more");
        let mut quick = Command::new("true").spawn().unwrap();
        let ended = wait_until(&mut quick, Instant::now() + Duration::from_secs(30), every).unwrap();
        assert_eq!(ended.map(ending), Some("exit status 0".into()));
    }
}
