//! Models, adapters, training, evaluation and generation, as a pure library:
//! it never prints, sleeps, spawns a process or opens a socket.
//!
//! The names at the root are what the daemon and the command line use.
#![forbid(unsafe_code)]

pub mod base;
pub mod bench;
pub mod dataset;
pub mod devices;
pub mod error;
pub mod generate;
pub mod keys;
pub mod metrics;
pub mod model;
pub mod plan;
pub mod plugins;
pub mod random_weights;
pub mod recipe;
pub mod run;
pub mod train;
pub mod vocabulary;

pub use dataset::{check as check_data, look};
pub use error::{EngineError, ErrorKind};
pub use plan::plan;
pub use recipe::{Chosen, Method, Recipe, RecipeError};
pub use run::train;
pub use vocabulary::{
    Control, Event, Observer, Outcome, Plan, PlanPart, PluginLibrary, StepMetrics, Summary, Tally, TrainRequest,
};
