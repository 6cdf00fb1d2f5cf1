//! Sums and multiples of whole tensors.

pub(crate) mod cpu;
pub mod reference;
#[cfg(test)]
mod tests;
