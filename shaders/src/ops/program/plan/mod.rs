//! From a program to passes over memory.
//!
//! A chain of elementwise operations is one *stream*: blocks of a few hundred
//! elements go through all of it while they lie in the first cache. What ends a
//! chain is a reduction, a matrix product, a transpose, or an operand that is
//! smaller than the chain (broadcast): its value must be whole in memory first.
//! A value that two passes need and that is not in memory is computed twice,
//! which costs less than writing and reading it.
//!
//! Every value has a *level*: how many such ends lie before it. Passes run
//! level by level; the last stream of the parameter's shape writes the new
//! parameter and states, after every read of the old ones.

mod planner;
mod share;

use finetuned_plugin_api::program::{Axis, Binary, Program, Reduction, Unary, ValueId};

/// Most destinations, and most reductions, of one stream.
pub(in crate::ops::program) const MOST_SINKS: usize = 8;

/// Where a whole value lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops::program) enum Memory {
    Parameter,
    Gradient,
    /// An f32 state.
    State(usize),
    /// A buffer of the scratch space.
    Buffer(usize),
}

/// An operand inside a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops::program) enum Source {
    Register(usize),
    /// The same place in memory of the stream's shape.
    Memory(Memory),
    /// A number of [`Stream::scalars`].
    Scalar(usize),
}

/// A number that a stream repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops::program) enum Scalar {
    Uniform(ValueId),
    /// The one element of a (1, 1) value.
    Memory(Memory),
}

/// What a stream does per block.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops::program) enum Action {
    Unary(Unary, Source),
    Binary(Binary, Source, Source),
    /// All three are registers or memory.
    Select(Source, Source, Source),
    /// Reads an 8-bit state.
    Load(usize),
    /// Copies an operand, if a scalar must be a vector, or memory is about
    /// to be overwritten.
    Copy(Source),
    /// One number a row, repeated along it.
    RepeatRow(Memory),
    /// One row, repeated per row.
    RepeatColumns(Memory),
}

/// A reduction at the end of a stream.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops::program) struct Sum {
    pub op: Reduction,
    pub axis: Axis,
    pub of: Source,
    /// The buffer of the result.
    pub into: usize,
}

/// One pass over memory of one shape.
#[derive(Debug, Clone, Default)]
pub(in crate::ops::program) struct Stream {
    pub rows: usize,
    pub columns: usize,
    /// (register to write, what it does), in order.
    pub actions: Vec<(usize, Action)>,
    pub registers: usize,
    pub scalars: Vec<Scalar>,
    /// Whole values to keep: (operand, buffer).
    pub stores: Vec<(Source, usize)>,
    pub sums: Vec<Sum>,
    /// The last pass: what the parameter and the full-sized states become.
    pub parameter: Option<Source>,
    pub states: Vec<(Source, usize)>,
    /// Memory of the stream's shape that it reads, to be asked for ahead.
    pub reads: Vec<Memory>,
    /// Whether blocks must begin at an 8-bit state's block.
    pub blocked: bool,
}

/// A step of a plan.
#[derive(Debug, Clone)]
pub(in crate::ops::program) enum Pass {
    Stream(Stream),
    /// `into` = a · b; the shapes are those of a (m, k) and b (k, n) as used.
    MatMul {
        a: Memory,
        a_transposed: bool,
        b: Memory,
        b_transposed: bool,
        size: (usize, usize, usize),
        into: usize,
    },
    /// `from` is (rows, columns).
    Transpose {
        from: Memory,
        rows: usize,
        columns: usize,
        into: usize,
    },
    /// States of another shape than the parameter's take their new values, all
    /// of which are read before the first is written.
    Commit(Vec<(Scalar, usize)>),
}

/// The passes of a program, and the buffers that they use.
#[derive(Debug, Clone)]
pub(in crate::ops::program) struct Plan {
    pub passes: Vec<Pass>,
    /// Elements of each buffer.
    pub buffers: Vec<usize>,
}

impl Plan {
    pub(in crate::ops::program) fn new(program: &Program) -> Plan {
        let (passes, sizes) = planner::passes(program);
        share::buffers(passes, &sizes)
    }
}
