//! Which plugin is being called.
//!
//! A plugin can end its process without a word: a fault, `exit`, an endless
//! loop, all memory. The worker therefore notes each call in a small file
//! before it makes it; whoever finds the dead worker reads there which plugin,
//! version and step it was ([`last_call`]). A watching thread ends calls that
//! take too long or too much memory, and notes why.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::PluginError;

/// Exit status of a process that was ended because a call took too long.
pub const EXIT_DEADLINE: i32 = 86;
/// Exit status of a process that was ended because a call took too much memory.
pub const EXIT_MEMORY: i32 = 87;

/// Bytes of the note; one write of this size is never seen in parts.
const NOTE_BYTES: usize = 512;

/// A plugin as messages name it.
pub(super) struct Caller {
    /// The plugin's name, or the library's file name before the plugin has told its name.
    pub plugin: String,
    /// Empty before the plugin has told it.
    pub version: String,
}

impl Caller {
    /// `plugin my-loss 0.1.0, step 7, in evaluate`.
    fn call(&self, function: &str) -> String {
        crate::error::call(&self.plugin, &self.version, step(), function)
    }
}

static STEP: AtomicU64 = AtomicU64::new(0);
static NOTES: Mutex<Option<File>> = Mutex::new(None);
static CURRENT: Mutex<Option<Current>> = Mutex::new(None);

struct Current {
    caller: Arc<Caller>,
    function: &'static str,
    began: Instant,
    /// Memory of the process when the call began, in bytes; 0 unknown.
    memory: u64,
}

/// The step that later calls belong to; 0 before the first.
pub fn set_step(step: u64) {
    STEP.store(step, Ordering::Relaxed);
}

/// The step that calls now belong to; 0 before the first.
pub(super) fn step() -> u64 {
    STEP.load(Ordering::Relaxed)
}

/// Notes calls in this file from now on.
///
/// # Errors
/// When the file cannot be made.
pub fn note_calls_in(path: &Path) -> Result<(), PluginError> {
    let file = File::create(path)
        .map_err(|error| PluginError::system(format!("cannot note plugin calls in {}", path.display()), error))?;
    *NOTES.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
    Ok(())
}

/// Limits of a single call.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub time: Duration,
    /// By how many bytes the process may grow during a call.
    pub memory_bytes: u64,
}

/// Starts the watching thread: a call beyond a limit ends this process, with
/// [`EXIT_DEADLINE`] or [`EXIT_MEMORY`], after a line on stderr and in the note.
///
/// # Errors
/// When the system gives no thread.
pub fn watch(limits: Limits) -> Result<(), PluginError> {
    let beat = (limits.time / 10).clamp(Duration::from_millis(5), Duration::from_millis(100));
    let work = move || {
        loop {
            std::thread::sleep(beat);
            let current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(call) = current.as_ref() else { continue };
            let grown = memory_of_this_process().saturating_sub(call.memory);
            let (status, cause) = if call.began.elapsed() > limits.time {
                (EXIT_DEADLINE, format!("did not return within {:.1} s", limits.time.as_secs_f64()))
            } else if call.memory > 0 && grown > limits.memory_bytes {
                (EXIT_MEMORY, format!("took {} MiB of memory in one call", grown >> 20))
            } else {
                continue;
            };
            let line = format!("{}: {cause}", call.caller.call(call.function));
            note(&line);
            eprintln!("{line}");
            // Nothing of the plugin's may run any more, its exit handlers
            // included.
            end_now(status);
        }
    };
    std::thread::Builder::new()
        .name("plugin-watch".into())
        .spawn(work)
        .map(|_| ())
        .map_err(|error| PluginError::system("cannot watch plugin calls", error))
}

/// Ends the process without running exit handlers.
fn end_now(status: i32) -> ! {
    #[cfg(unix)]
    {
        unsafe extern "C" {
            fn _exit(status: i32) -> !;
        }
        // SAFETY: the C library's `_exit` takes any number and does not return.
        unsafe { _exit(status) }
    }
    #[cfg(not(unix))]
    std::process::exit(status)
}

/// Resident memory in bytes; 0 where the system does not say.
fn memory_of_this_process() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}

fn note(line: &str) {
    let mut notes = NOTES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(file) = notes.as_mut() {
        let mut bytes = line.as_bytes()[..line.len().min(NOTE_BYTES - 1)].to_vec();
        bytes.resize(NOTE_BYTES - 1, b' ');
        bytes.push(b'\n');
        // A note that cannot be written must not fail the call it speaks of.
        #[cfg(unix)]
        let _ = std::os::unix::fs::FileExt::write_at(file, &bytes, 0);
        #[cfg(not(unix))]
        {
            use std::io::{Seek, SeekFrom, Write};
            let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&bytes));
        }
    }
}

/// A call in progress; ends with this.
pub(super) struct Guard;

pub(super) fn enter(caller: &Arc<Caller>, function: &'static str) -> Guard {
    note(&caller.call(function));
    let call =
        Current { caller: Arc::clone(caller), function, began: Instant::now(), memory: memory_of_this_process() };
    *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = Some(call);
    Guard
}

impl Drop for Guard {
    fn drop(&mut self) {
        *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = None;
        note("");
    }
}

/// What a worker that ended noted last: the call that it was in, or that was
/// ended and why; `None` when it was in no call.
///
/// # Errors
/// When there is a note that cannot be read.
pub fn last_call(path: &Path) -> Result<Option<String>, PluginError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_string()).filter(|text| !text.is_empty())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(PluginError::system(format!("cannot read {}", path.display()), error)),
    }
}
