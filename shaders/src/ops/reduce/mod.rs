//! Σ x² over several tensors: the gradient norm.

pub(crate) mod cpu;
pub mod reference;
#[cfg(test)]
mod tests;
