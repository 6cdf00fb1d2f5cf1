//! The control interface of the daemon and the client of it.

pub mod client;
pub mod messages;
pub mod server;
