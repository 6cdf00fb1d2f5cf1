//! Training: order, steps, schedule, checkpoints, output.

pub mod checkpoint;
pub mod heads;
pub mod metrics_file;
pub mod optimize;
pub mod output;
pub mod prepare;
pub mod reference;
pub mod run;
pub mod schedule;
pub mod state;
pub mod step;
pub mod units;
pub mod used;
