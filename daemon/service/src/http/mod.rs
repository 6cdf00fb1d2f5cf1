//! The two ends of the control interface, which [`crate::api`] describes.

pub mod client;
pub mod server;
