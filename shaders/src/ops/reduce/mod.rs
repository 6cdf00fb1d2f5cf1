//! Σ x² over several tensors: the gradient norm.

pub(crate) mod cpu;
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;
