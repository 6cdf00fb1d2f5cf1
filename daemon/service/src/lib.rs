//! The process around the engine: inbox, jobs, workers, control interface and
//! command line.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod devices;
pub mod exit;
pub mod filesystem;
pub mod foreground;
pub mod http;
pub mod inbox;
pub mod installation;
pub mod lock;
pub mod logging;
pub mod models;
pub mod plugins;
pub mod recipes;
pub mod report;
pub mod results;
pub mod run;
mod sample;
pub mod service_manager;
pub mod store;
pub mod supervisor;
pub mod words;
pub mod worker;
