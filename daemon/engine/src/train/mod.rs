//! Training: what a step is made of.

pub mod heads;
pub mod load;
pub mod optimize;
pub mod reference;
pub mod schedule;
pub mod step;
pub mod units;
