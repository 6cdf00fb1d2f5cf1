//! The process around the engine: inbox, jobs, workers, control interface and
//! command line.
#![forbid(unsafe_code)]

pub mod config;
pub mod filesystem;
pub mod inbox;
pub mod lock;
pub mod report;
pub mod store;
pub mod words;
