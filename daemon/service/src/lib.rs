//! The process around the engine: inbox, jobs, workers, control interface and
//! command line.
#![forbid(unsafe_code)]

pub mod api;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod demo;
pub mod devices;
pub mod error;
pub mod exit;
pub mod filesystem;
pub mod foreground;
pub mod http;
pub mod inbox;
pub mod installation;
pub mod logging;
pub mod models;
pub mod plugins;
mod process;
pub mod protocol;
pub mod recipes;
pub mod report;
pub mod results;
pub mod run;
mod sample;
pub mod service_manager;
mod signals;
pub mod store;
pub mod supervisor;
pub mod words;
pub mod worker;
