//! Whether a GPU and its driver are trusted with a job: every operation is
//! tested once, in a child process, since a bad driver may take its
//! process with it; the result is remembered until the card, the driver or this
//! program changes.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use finetuned_engine::devices::{Candidate, OperationResult, candidates};
use finetuned_engine::{ErrorKind, Event, Observer};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::filesystem::replace_file;
use crate::process::wait_until;

/// Under the state folder.
pub const FILE: &str = "devices.json";

/// How long a test may take; kernels are compiled on the way.
const TEST_DEADLINE: Duration = Duration::from_secs(15 * 60);

/// What a test found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tested {
    /// See [`Candidate::identity`].
    pub device: String,
    /// Why the test itself ended early, if it did.
    pub failure: Option<String>,
    /// Of each operation that was tested.
    pub results: Vec<OperationResult>,
}

impl Tested {
    /// Why the device is not to be used, in one line.
    pub fn refusal(&self) -> Option<String> {
        if let Some(failure) = &self.failure {
            return Some(failure.clone());
        }
        let wrong = self.results.iter().find(|result| !result.passed)?;
        Some(match &wrong.reason {
            Some(reason) => format!("{} failed: {reason}", wrong.operation),
            None => {
                format!("{} is off by {:.1e}, {:.1e} is allowed", wrong.operation, wrong.worst_error, wrong.tolerance)
            }
        })
    }
}

/// What is remembered, newest last; a damaged file is as none.
fn remembered(file: &Path) -> Vec<Tested> {
    std::fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// What is known of a device.
pub fn known(file: &Path, device: &str) -> Option<Tested> {
    remembered(file).into_iter().find(|tested| tested.device == device)
}

/// Remembers a test in place of an earlier one of the same device.
///
/// # Errors
/// The state folder cannot be written.
pub fn remember(file: &Path, tested: &Tested) -> Result<()> {
    let mut all = remembered(file);
    all.retain(|other| other.device != tested.device);
    all.push(tested.clone());
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    replace_file(file, &serde_json::to_vec_pretty(&all)?).with_context(|| format!("cannot write {}", file.display()))
}

/// What to tell the user of a build without GPU code on a machine with a graphics card:
/// the card, and the one command that adds the code.
pub fn idle_gpu() -> Option<String> {
    let seen = finetuned_engine::devices::unused_gpus();
    if seen.is_empty() {
        return None;
    }
    let features = if cfg!(target_vendor = "apple") { "gpu" } else { "gpu,spirv" };
    Some(format!(
        "this machine has a graphics card ({}) and this program was built without GPU code; \
         `cargo build --release --features {features}` in the source folder adds it",
        seen.join(", ")
    ))
}

/// The device that a run computes on: what was asked for, with the first of its
/// compilers that is trusted. A GPU that fails its test is refused if it was
/// asked for, and passed over with a note if the choice was left to the
/// program.
///
/// # Errors
/// A device that is not there, or that computes wrongly, by name.
pub fn trusted(asked: &str, file: &Path, observer: &mut dyn Observer) -> Result<String> {
    let mut refusals = Vec::new();
    let candidates = candidates(asked)?;
    if candidates.is_empty() {
        if asked == "auto" {
            let message = match idle_gpu() {
                Some(idle) => format!("the run computes on the CPU: {idle}"),
                None => "no graphics card with a driver was found, so the run computes on the CPU; `finetune device list` shows what there is".into(),
            };
            observer.event(&Event::Note { message });
        }
        return Ok(asked.to_string());
    }
    for Candidate { spec, identity } in candidates {
        let tested = match known(file, &identity) {
            Some(tested) => tested,
            None => {
                let name = format!("testing {identity}, once: every operation, each kernel is compiled");
                observer.event(&Event::Phase { name });
                let tested = test_in_a_child(&spec, &identity, file)?;
                remember(file, &tested)?;
                if let Some(why) = tested.refusal() {
                    observer.event(&Event::Note { message: format!("{spec} is not used: {why}") });
                }
                tested
            }
        };
        match tested.refusal() {
            None => return Ok(spec),
            Some(why) => refusals.push(format!("{identity}: {why}")),
        }
    }
    let why = refusals.join("; ");
    if asked == "auto" {
        let message = format!("the run computes on the CPU: {why}. `finetune device test` tries the GPU again");
        observer.event(&Event::Note { message });
        return Ok("cpu".into());
    }
    Err(Error::new(
        ErrorKind::Device,
        format!(
            "not trusted with a job: {why}. Update the driver and run `finetune device test --device {asked}`, or use --device cpu"
        ),
    ))
}

/// `XDG_RUNTIME_DIR` for a child that opens a GPU, if it is not set, as in a service:
/// Mesa's Vulkan layer looks there for a display, and without the variable complains on
/// stderr, several times per process. In the state folder it finds none.
pub fn runtime_dir(state_dir: &Path) -> Option<(&'static str, PathBuf)> {
    const NAME: &str = "XDG_RUNTIME_DIR";
    let is_set = std::env::var_os(NAME).is_some_and(|folder| Path::new(&folder).is_absolute());
    if is_set { None } else { std::path::absolute(state_dir).ok().map(|folder| (NAME, folder)) }
}

/// Tests every operation in a child process; `file` is where the result will be
/// remembered.
///
/// # Errors
/// The process cannot be started.
pub fn test_in_a_child(asked: &str, device: &str, file: &Path) -> Result<Tested> {
    let program = std::env::current_exe().context("this program's own path is unknown")?;
    let mut child = Command::new(&program)
        .args(["device-child", "--device", asked])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .envs(file.parent().and_then(runtime_dir))
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let output = child.stdout.take().ok_or_else(|| Error::internal("the child has no output"))?;
    let reader = std::thread::spawn(move || std::io::read_to_string(output));
    let status = wait_until(&mut child, Instant::now() + TEST_DEADLINE, Duration::from_millis(50))?;
    let text = reader.join().ok().and_then(std::result::Result::ok).unwrap_or_default();
    let results: Option<Vec<OperationResult>> = serde_json::from_str(&text).ok();
    let failure = match (&results, status) {
        (Some(_), Some(_)) => None,
        (_, None) => Some(format!("its test did not end within {} minutes", TEST_DEADLINE.as_secs() / 60)),
        (None, Some(status)) => {
            Some(format!("its test ended without a result ({status}): the driver may have crashed"))
        }
    };
    Ok(Tested { device: device.into(), failure, results: results.unwrap_or_default() })
}

/// The process that a test runs in: the results as JSON on stdout.
pub fn child(asked: &str) -> ExitCode {
    let results = finetuned_engine::devices::test(asked, &mut |_| {});
    match results.map_err(Error::from).and_then(|results| Ok(serde_json::to_string(&results)?)) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Notes(Vec<String>);

    impl Observer for Notes {
        fn event(&mut self, event: &Event) {
            if let Event::Note { message } = event {
                self.0.push(message.clone());
            }
        }
    }

    fn result(passed: bool) -> OperationResult {
        OperationResult { operation: "rotary".into(), worst_error: 1e-3, tolerance: 1e-6, passed, reason: None }
    }

    #[test]
    fn what_is_remembered_comes_back_and_the_newest_test_counts() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state").join(FILE);
        let good = Tested { device: "a card".into(), failure: None, results: vec![result(true)] };
        remember(&file, &good).unwrap();
        let bad = Tested { results: vec![result(true), result(false)], ..good.clone() };
        remember(&file, &Tested { device: "another".into(), ..good.clone() }).unwrap();
        remember(&file, &bad).unwrap();
        assert_eq!(known(&file, "a card"), Some(bad.clone()));
        assert_eq!(known(&file, "another").and_then(|tested| tested.refusal()), None);
        assert!(bad.refusal().is_some_and(|why| why.contains("rotary")));
        std::fs::write(&file, "{").unwrap();
        assert_eq!(known(&file, "a card"), None);
    }

    #[test]
    fn the_cpu_needs_no_test_and_a_device_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        let mut notes = Notes(Vec::new());
        assert_eq!(trusted("cpu", &file, &mut notes).unwrap(), "cpu");
        let error = trusted("gpu:99", &file, &mut notes).unwrap_err().to_string();
        assert!(error.contains("gpu:99"), "{error}");
        assert!(!file.exists() && notes.0.is_empty());
    }

    #[test]
    fn a_gpu_that_failed_is_refused_by_name_without_another_test() {
        let found = candidates("gpu").unwrap_or_default();
        if found.is_empty() {
            assert!(std::env::var_os("FINETUNED_REQUIRE_GPU").is_none(), "no GPU was found");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        for candidate in &found {
            let device = candidate.identity.clone();
            remember(&file, &Tested { device, failure: None, results: vec![result(false)] }).unwrap();
        }
        let error = trusted("gpu", &file, &mut Notes(Vec::new())).unwrap_err().to_string();
        assert!(error.contains("rotary") && error.contains("not trusted"), "{error}");
    }

    #[test]
    fn a_compiler_that_failed_is_passed_over_for_the_next() {
        let found = candidates("gpu").unwrap_or_default();
        let [first, .., last] = found.as_slice() else { return };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        let failure = Some("its test ended without a result (signal: 11)".to_string());
        remember(&file, &Tested { device: first.identity.clone(), failure, results: Vec::new() }).unwrap();
        let good = Tested { device: last.identity.clone(), failure: None, results: vec![result(true)] };
        remember(&file, &good).unwrap();
        assert_eq!(trusted("gpu", &file, &mut Notes(Vec::new())).unwrap(), last.spec);
    }
}
