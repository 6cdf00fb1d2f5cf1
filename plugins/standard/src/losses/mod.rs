//! Losses on supervised rows.

pub mod cross_entropy;
pub mod entropy_bonus;
pub mod focal;
