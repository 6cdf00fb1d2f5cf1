//! The model: one decoder, described by data, for all supported families.

pub mod adapter;
pub mod block;
pub mod build;
pub mod decoder;
pub mod linear;
pub mod norm;
pub mod parameters;
pub mod shape;
pub mod value;
