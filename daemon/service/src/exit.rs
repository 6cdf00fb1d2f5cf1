//! Exit codes, as sysexits.h has them, so that a unit file can tell a wrong
//! configuration (which no restart mends) from a crash.

use std::process::ExitCode;

use finetuned_engine::EngineError;

/// The command line is wrong.
pub const USAGE: u8 = 64;
/// The daemon, or the device, is not there.
pub const UNAVAILABLE: u8 = 69;
/// The state folder cannot be used.
pub const STATE: u8 = 73;
/// Stopped before the end; the same command goes on.
pub const TEMPORARY: u8 = 75;
/// The configuration is wrong.
pub const CONFIG: u8 = 78;

/// An error with an exit code of its own.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Coded {
    pub code: u8,
    pub message: String,
}

/// An error that ends the process with `code`.
pub fn coded(code: u8, message: impl Into<String>) -> anyhow::Error {
    Coded { code, message: message.into() }.into()
}

/// Prints an error and gives its code; 1 where it has none.
pub fn report(program: &str, error: &anyhow::Error) -> ExitCode {
    eprintln!("{program}: {error:#}");
    let code = if let Some(coded) = error.downcast_ref::<Coded>() {
        coded.code
    } else if error.downcast_ref::<crate::config::ConfigError>().is_some() {
        CONFIG
    } else if error.downcast_ref::<EngineError>().is_some_and(EngineError::is_of_the_device) {
        UNAVAILABLE
    } else {
        1
    };
    ExitCode::from(code)
}
