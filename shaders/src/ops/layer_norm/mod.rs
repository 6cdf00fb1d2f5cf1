//! Layer normalisation (Ba, Kiros and Hinton, 2016), for GPT-2.
//!
//! `y = (x − mean) · rstd · w + b` over rows of `w.len()` elements, with the
//! biased variance. Statistics are `[rows, 2]`: mean and rstd. Backward, with
//! `g = dy · w` and `n = (x − mean) · rstd`:
//! `dx = rstd · (g − mean(g) − n · mean(g · n))`.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;
