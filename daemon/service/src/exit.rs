//! Exit codes, as sysexits.h has them, so that a unit file can tell a wrong
//! configuration (which no restart mends) from a crash. Which kind of error ends
//! with which code is said in [`crate::error::meaning`].

/// The command failed.
pub const FAILED: u8 = 1;
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
