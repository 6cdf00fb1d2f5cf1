//! Tensors, devices and the operations of a training step, each with its
//! backward pass and a plain reference that defines it.
//!
//! This crate knows tensors: never models, tokens' meaning or files.
#![deny(unsafe_code)]

pub mod conformance;
pub(crate) mod cpu;
pub mod device;
pub mod error;
pub mod gpu;
mod ledger;
pub mod ops;
pub mod profile;
pub mod random;
pub mod tensor;

pub use error::{Result, TensorError};
pub use ops::{
    Activation, AttentionSpec, Counting, Device, DeviceInfo, Head, RotaryTable, Segments, StatisticSet,
    TokenCoefficients, TokenStatistics, Weight, WeightKind,
};
pub use tensor::{DType, Reading, Tensor};
