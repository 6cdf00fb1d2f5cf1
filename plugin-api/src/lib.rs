//! The vocabulary and the door of finetuned's plugins: all that a plugin
//! author depends on.
//!
//! A plugin is one of three kinds:
//! - a [`Loss`](loss::Loss) turns the statistics of the trained tokens into a
//!   number and its derivatives ([`tape`] derives them from the formula);
//! - an [`Optimizer`](optimizer::Optimizer) states an update rule as data, a
//!   [`Program`](program::Program) that the engine runs on any device;
//! - an [`Alignment`](alignment::Alignment) method says what data it needs,
//!   whether it needs a reference policy, and which loss is its objective.
//!
//! What a plugin can be told by a user it states as
//! [`Parameters`](parameters::Parameters). The engine finds plugins in a
//! [`Registry`](registry::Registry), built-in ones by the same traits as all
//! others.

#![deny(unsafe_code)]

pub mod abi;
pub mod alignment;
pub mod conformance;
pub mod error;
pub mod kind;
pub mod loss;
pub mod optimizer;
pub mod parameters;
pub mod program;
pub mod registry;
pub mod statistic;
pub mod suggest;
pub mod tape;

pub use error::PluginError;
