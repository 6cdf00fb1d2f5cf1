//! Training: what a step is made of.

pub mod heads;
pub mod load;
pub mod micro_batch;
pub mod optimize;
pub mod order;
pub mod reference;
pub mod schedule;
pub mod step;
