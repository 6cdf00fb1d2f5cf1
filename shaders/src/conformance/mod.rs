//! Every operation of a device against its plain reference, on awkward shapes:
//! what decides whether a device and its driver are trusted with a job, and
//! what the tests run on every device they find.
//!
//! Shapes: one token, lengths that no tile divides, a vocabulary of 49153,
//! head sizes from 16 to 256, nine query heads on three key heads. Each check is in
//! its operation's folder, with its tolerance.

pub use crate::ops::check::{Check, Finding};

/// All checks, in the order of a step.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    crate::ops::CHECKS.iter().copied().flatten()
}

#[cfg(test)]
mod tests;
