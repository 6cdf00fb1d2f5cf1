//! The operations of a training step, each in a folder of its own.
//!
//! An operation is a method of [`Device`]. Its folder has all that there is to it: what it
//! takes and gives, its plain reference, its code per backend, what it costs on the
//! counting device, its check and its tests. A new one adds its name to [`Operation`] and
//! its line to [`CHECKS`]. No type of a runtime leaves this crate.
//!
//! # Conventions
//! - `N` tokens of a micro-batch lie flat, one document after another, without
//!   padding; [`Segments`] holds where each document begins. `C` is the width
//!   of the residual stream, `H` and `G` the query and key/value heads, `D` a
//!   head's width, `V` the vocabulary, `R` an adapter's rank.
//! - A weight is `[out, in]`, as in the checkpoint: `y = x Wᵀ + b`.
//! - The gradient of `x` is `dx`. An argument `into: Option<Tensor>` is the
//!   accumulator to add to; `None` makes a new tensor.
//! - Every operation checks its shapes and returns [`TensorError`]; none
//!   panics.
//! - Results do not depend on the number of threads' timing: the same call on
//!   the same device gives the same bits.

pub mod attention;
pub(crate) mod check;
pub mod columns;
pub(crate) mod device;
pub mod dropout;
pub mod elementwise;
pub mod embedding;
pub mod gated;
pub mod gather;
pub mod layer_norm;
pub mod linear;
pub mod matmul;
pub(crate) mod memory;
pub mod nf4;
pub(crate) mod operation;
pub mod program;
pub mod random_weight;
pub mod reduce;
pub mod rms_norm;
pub mod rotary;
pub mod token_logp;

#[cfg(test)]
pub(crate) mod testing;

pub use self::attention::{AttentionSpec, Segments};
pub use self::device::{Counting, Device, DeviceInfo};
pub use self::gated::Activation;
pub use self::operation::Operation;
pub use self::program::ProgramState;
pub use self::rotary::RotaryTable;
pub use self::token_logp::{Head, StatisticSet, TokenCoefficients, TokenStatistics};
use crate::tensor::Tensor;

/// The checks of all operations, in the order of a step. A new operation adds its line.
pub(crate) const CHECKS: &[&[check::Check]] = &[
    memory::conformance::CHECKS,
    random_weight::conformance::CHECKS,
    elementwise::conformance::CHECKS,
    columns::conformance::CHECKS,
    reduce::conformance::CHECKS,
    gather::conformance::CHECKS,
    dropout::conformance::CHECKS,
    embedding::conformance::CHECKS,
    rms_norm::conformance::CHECKS,
    layer_norm::conformance::CHECKS,
    rotary::conformance::CHECKS,
    gated::conformance::CHECKS,
    matmul::conformance::CHECKS,
    nf4::conformance::CHECKS,
    linear::conformance::CHECKS,
    attention::conformance::CHECKS,
    token_logp::conformance::CHECKS,
    program::conformance::CHECKS,
];

/// A linear layer's weight `[out, in]`, in the type it is kept in.
#[derive(Debug, Clone)]
pub enum Weight {
    /// f32 or bf16 elements.
    Dense(Tensor),
    /// 4-bit NormalFloat blocks (QLoRA).
    Nf4(crate::ops::nf4::Nf4Weight),
}

/// How the elements of a [`Weight`] are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightKind {
    F32,
    Bf16,
    /// NF4; the flag says whether the block scales are quantised as well.
    Nf4 {
        double_quant: bool,
    },
}
