//! The model: one decoder, described by data, for all supported families.

pub mod adapter;
pub mod attention;
pub mod batch;
pub mod block;
pub mod build;
pub mod context;
pub mod decoder;
pub mod linear;
pub mod mlp;
pub mod norm;
pub mod parameters;
pub mod products;
pub mod streams;
pub mod value;
