//! What a generated kernel computes per element: a list of steps, known
//! when the kernel is compiled.
//!
//! Numbers that change from step to step, and constants, are no part of it:
//! they lie in a table that the kernel reads. So tensors of all shapes under
//! one rule share one kernel.

use finetuned_plugin_api::program::{Binary, Unary, codes};

/// How an operand of a chain's shape, or a smaller one, is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Spread {
    /// The same place.
    Whole,
    /// One number a row.
    Row,
    /// One number a column.
    Column,
    /// One number.
    One,
}

/// One value of a chain; operands are places of earlier steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// An f32 of the table.
    Table(usize),
    /// An element of a buffer of f32.
    Read(usize, Spread),
    /// An element of a buffer of 8 bits.
    Decode(usize, bool),
    Unary(Unary, usize),
    Binary(Binary, usize, usize),
    /// The second if the first is not 0, else the third.
    Select(usize, usize, usize),
}

/// Where a value of a chain goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Sink {
    /// A buffer of f32.
    Float(usize),
    /// A buffer of 8 bits, for numbers of both signs or not.
    Bytes(usize, bool),
}

/// A chain, and what is kept of it: (step, where to).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Code {
    pub steps: Vec<Step>,
    pub sinks: Vec<(usize, Sink)>,
}

impl Code {
    /// Whether the units of a cube work together on a block.
    pub fn blocked(&self) -> bool {
        self.sinks.iter().any(|(_, sink)| matches!(sink, Sink::Bytes(..)))
    }
}

/// Places of the table that hold +∞ and NaN, which kernels cannot write down.
pub(super) const INFINITY: usize = 0;
pub(super) const NAN: usize = 1;
/// Uniform values follow, after the codebooks if the program has 8-bit
/// states.
pub(super) const FIXED: usize = 2;

/// Words of a codebook: 256 codes in ascending order, then the half ways
/// between each and the next.
const BOOK: usize = 512;

/// Where the codebook of a type lies.
pub(super) fn book(signed: bool) -> usize {
    if signed { FIXED } else { FIXED + BOOK }
}

/// Words of the table that precede the uniform values.
pub(super) fn head(eight_bit: bool) -> Vec<u32> {
    let mut words = vec![f32::INFINITY.to_bits(), f32::NAN.to_bits()];
    if eight_bit {
        for signed in [true, false] {
            let code: Vec<f32> = (0..=255).map(|code| codes::value(code, signed)).collect();
            words.extend(code.iter().map(|x| x.to_bits()));
            // As the definition has them; the last has no next.
            words.extend(code.windows(2).map(|pair| (0.5 * (pair[0] + pair[1])).to_bits()));
            words.push(f32::INFINITY.to_bits());
        }
    }
    words
}
