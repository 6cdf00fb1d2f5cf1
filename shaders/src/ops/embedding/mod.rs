//! Token embeddings: rows of a table, times a factor (√C for Gemma).
//!
//! ids `[N]`, table `[V, C]` (f32 or bf16), y `[N, C]`.

pub(crate) mod conformance;
pub(crate) mod cpu;
pub mod reference;
#[cfg(test)]
mod tests;
