//! The MLP's nonlinearities: `act(gate) ⊙ up` (SwiGLU and GeGLU; Shazeer,
//! 2020) and the plain `act(x)` of GPT-2.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;
