//! The words between the engine and its callers: what is asked, what is said
//! meanwhile, and what comes out. Nothing here computes.

mod event;
mod plan;
mod request;

pub use event::{Event, StepMetrics, Summary, Tally, VALIDATION_AFTER, VALIDATION_BEFORE};
pub(crate) use plan::part;
pub use plan::{Plan, PlanPart};
pub use request::{Control, Observer, Outcome, PluginLibrary, TrainRequest};
