//! Models, adapters, training, evaluation and generation, as a pure library:
//! it never prints, sleeps, spawns a process or opens a socket.
#![forbid(unsafe_code)]

pub mod api;
pub mod bench;
pub mod check;
pub mod devices;
pub mod error;
pub mod event;
pub mod generate;
pub mod keys;
pub mod metrics;
pub mod model;
pub mod plan;
pub mod recipe;
mod recipe_table;
pub mod train;
