//! A small reverse-mode tape, so that the author of a loss writes its formula
//! and nothing else.
//!
//! A value [`V`] is one number or a vector over the batch's tokens, in f64.
//! Operators record how it was made; going back over the record gives the
//! derivative by every statistic. Masked tokens (weight 0) enter as zero and
//! leave with a derivative of zero, whatever their statistics hold.
//!
//! DPO, whole:
//! ```
//! use finetuned_plugin_api::PluginError;
//! use finetuned_plugin_api::loss::Needs;
//! use finetuned_plugin_api::tape::{Formula, TapeBatch, V};
//!
//! struct Dpo { beta: f64 }
//!
//! impl Formula for Dpo {
//!     fn needs(&self) -> Needs {
//!         Needs { reference_logp: true, ..Needs::default() }
//!     }
//!     fn loss<'t>(&self, b: &TapeBatch<'t>) -> Result<V<'t>, PluginError> {
//!         let losses = b.pairs()?.into_iter().map(|(chosen, rejected)| {
//!             -((chosen.log_ratio() - rejected.log_ratio()) * self.beta).log_sigmoid()
//!         });
//!         Ok(b.sum(losses) / b.totals().pairs as f64)
//!     }
//! }
//! ```

mod batch;
mod formula;

pub use batch::{Seq, TapeBatch, positive};
pub use formula::Formula;

use std::cell::RefCell;
use std::ops::{Add, Div, Mul, Neg, Sub};

#[derive(Debug, Clone, Copy)]
enum Op {
    Leaf,
    Constant,
    Negate(usize),
    Exp(usize),
    Ln(usize),
    /// log(1 − eˣ), x < 0.
    Log1mExp(usize),
    LogSigmoid(usize),
    Sigmoid(usize),
    Relu(usize),
    Absolute(usize),
    Power(usize, f64),
    Add(usize, usize),
    Subtract(usize, usize),
    Multiply(usize, usize),
    Divide(usize, usize),
    /// Elements start..end of a vector, summed.
    Sum(usize, usize, usize),
    /// One element of a vector.
    Element(usize, usize),
}

struct Node {
    op: Op,
    value: Vec<f64>,
}

/// The record of a computation.
#[derive(Default)]
pub struct Tape {
    nodes: RefCell<Vec<Node>>,
}

/// A value on the tape: one number, or a vector (operators on a vector and a
/// number repeat the number).
#[derive(Clone, Copy)]
pub struct V<'t> {
    tape: &'t Tape,
    id: usize,
}

fn sigmoid(x: f64) -> f64 {
    // Each branch's exponent is not positive, so that none overflows.
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

fn log1mexp(x: f64) -> f64 {
    if x > -std::f64::consts::LN_2 { (-x.exp_m1()).ln() } else { (-x.exp()).ln_1p() }
}

impl Tape {
    fn push(&self, op: Op, value: Vec<f64>) -> V<'_> {
        let mut nodes = self.nodes.borrow_mut();
        nodes.push(Node { op, value });
        V { tape: self, id: nodes.len() - 1 }
    }

    fn unary(&self, op: Op, a: usize, f: impl Fn(f64) -> f64) -> V<'_> {
        let value = self.nodes.borrow()[a].value.iter().map(|x| f(*x)).collect();
        self.push(op, value)
    }

    fn binary(&self, op: Op, a: usize, b: usize, f: impl Fn(f64, f64) -> f64) -> V<'_> {
        let value = {
            let nodes = self.nodes.borrow();
            let (a, b) = (&nodes[a].value, &nodes[b].value);
            match (a.len(), b.len()) {
                (1, _) => b.iter().map(|y| f(a[0], *y)).collect(),
                (_, 1) => a.iter().map(|x| f(*x, b[0])).collect(),
                // Vectors of two lengths (tokens and sequences) have no sum;
                // NaN fails the step with the loss's name.
                (n, m) if n != m => vec![f64::NAN],
                _ => a.iter().zip(b).map(|(x, y)| f(*x, *y)).collect(),
            }
        };
        self.push(op, value)
    }

    /// The derivative of one number by every value of the record.
    fn backward(&self, of: usize) -> Vec<Vec<f64>> {
        let nodes = self.nodes.borrow();
        let mut adjoint: Vec<Vec<f64>> = vec![Vec::new(); nodes.len()];
        adjoint[of] = vec![1.0; nodes[of].value.len()];
        for at in (0..=of).rev() {
            // A value that nothing asked about has no adjoint; a leaf keeps it.
            if adjoint[at].is_empty() {
                continue;
            }
            let node = &nodes[at];
            if matches!(node.op, Op::Leaf | Op::Constant) {
                continue;
            }
            let d = std::mem::take(&mut adjoint[at]);
            let mut give = |to: usize, f: &dyn Fn(usize) -> f64| {
                let length = nodes[to].value.len();
                let into = &mut adjoint[to];
                into.resize(length, 0.0);
                for i in 0..d.len() {
                    into[if length == 1 { 0 } else { i }] += f(i);
                }
            };
            let y = &node.value;
            let of = |id: usize, i: usize| {
                let value = &nodes[id].value;
                value[if value.len() == 1 { 0 } else { i }]
            };
            match node.op {
                Op::Leaf | Op::Constant => {}
                Op::Negate(a) => give(a, &|i| -d[i]),
                Op::Exp(a) => give(a, &|i| d[i] * y[i]),
                Op::Ln(a) => give(a, &|i| d[i] / of(a, i)),
                Op::Log1mExp(a) => give(a, &|i| -d[i] / (-of(a, i)).exp_m1()),
                Op::LogSigmoid(a) => give(a, &|i| d[i] * sigmoid(-of(a, i))),
                Op::Sigmoid(a) => give(a, &|i| d[i] * y[i] * (1.0 - y[i])),
                Op::Relu(a) => give(a, &|i| if of(a, i) > 0.0 { d[i] } else { 0.0 }),
                Op::Absolute(a) => give(a, &|i| if of(a, i) < 0.0 { -d[i] } else { d[i] }),
                Op::Power(_, 0.0) => {}
                Op::Power(a, exponent) => give(a, &|i| d[i] * exponent * of(a, i).powf(exponent - 1.0)),
                Op::Add(a, b) => {
                    give(a, &|i| d[i]);
                    give(b, &|i| d[i]);
                }
                Op::Subtract(a, b) => {
                    give(a, &|i| d[i]);
                    give(b, &|i| -d[i]);
                }
                Op::Multiply(a, b) => {
                    give(a, &|i| d[i] * of(b, i));
                    give(b, &|i| d[i] * of(a, i));
                }
                Op::Divide(a, b) => {
                    give(a, &|i| d[i] / of(b, i));
                    give(b, &|i| -d[i] * y[i] / of(b, i));
                }
                Op::Sum(a, start, end) => {
                    let into = &mut adjoint[a];
                    into.resize(nodes[a].value.len(), 0.0);
                    into[start..end].iter_mut().for_each(|into| *into += d[0]);
                }
                Op::Element(a, i) => {
                    let into = &mut adjoint[a];
                    into.resize(nodes[a].value.len(), 0.0);
                    into[i] += d[0];
                }
            }
        }
        adjoint
    }
}

impl<'t> V<'t> {
    /// The number; of a vector, its first element.
    pub fn value(self) -> f64 {
        self.tape.nodes.borrow()[self.id].value.first().copied().unwrap_or(0.0)
    }

    fn unary(self, op: fn(usize) -> Op, f: impl Fn(f64) -> f64) -> V<'t> {
        self.tape.unary(op(self.id), self.id, f)
    }

    pub fn exp(self) -> V<'t> {
        self.unary(Op::Exp, f64::exp)
    }

    pub fn ln(self) -> V<'t> {
        self.unary(Op::Ln, f64::ln)
    }

    /// log(1 − eˣ) for x < 0, exact near both ends.
    pub fn log1mexp(self) -> V<'t> {
        self.unary(Op::Log1mExp, log1mexp)
    }

    /// log σ(x), without overflow.
    pub fn log_sigmoid(self) -> V<'t> {
        self.unary(Op::LogSigmoid, log_sigmoid)
    }

    pub fn sigmoid(self) -> V<'t> {
        self.unary(Op::Sigmoid, sigmoid)
    }

    /// max(x, 0); the derivative at 0 is 0.
    pub fn relu(self) -> V<'t> {
        self.unary(Op::Relu, |x| x.max(0.0))
    }

    pub fn abs(self) -> V<'t> {
        self.unary(Op::Absolute, f64::abs)
    }

    pub fn square(self) -> V<'t> {
        self * self
    }

    pub fn powf(self, exponent: f64) -> V<'t> {
        self.tape.unary(Op::Power(self.id, exponent), self.id, |x| x.powf(exponent))
    }

    /// The larger of this and a number.
    pub fn at_least(self, floor: f64) -> V<'t> {
        (self - floor).relu() + floor
    }

    /// The smaller of this and a number.
    pub fn at_most(self, ceiling: f64) -> V<'t> {
        -(-self).at_least(-ceiling)
    }

    /// The same value, as a constant: no derivative flows through.
    pub fn detach(self) -> V<'t> {
        let value = self.tape.nodes.borrow()[self.id].value.clone();
        self.tape.push(Op::Constant, value)
    }

    /// The sum of a vector's elements.
    pub fn sum(self) -> V<'t> {
        let length = self.tape.nodes.borrow()[self.id].value.len();
        self.range_sum(0, length)
    }

    fn range_sum(self, start: usize, end: usize) -> V<'t> {
        let sum = self.tape.nodes.borrow()[self.id].value[start..end].iter().sum();
        self.tape.push(Op::Sum(self.id, start, end), vec![sum])
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident, $op:ident, $f:expr) => {
        impl<'t> $trait for V<'t> {
            type Output = V<'t>;
            fn $method(self, other: V<'t>) -> V<'t> {
                self.tape.binary(Op::$op(self.id, other.id), self.id, other.id, $f)
            }
        }
        impl<'t> $trait<f64> for V<'t> {
            type Output = V<'t>;
            fn $method(self, other: f64) -> V<'t> {
                let other = self.tape.push(Op::Constant, vec![other]);
                self.tape.binary(Op::$op(self.id, other.id), self.id, other.id, $f)
            }
        }
        impl<'t> $trait<V<'t>> for f64 {
            type Output = V<'t>;
            fn $method(self, other: V<'t>) -> V<'t> {
                let this = other.tape.push(Op::Constant, vec![self]);
                other.tape.binary(Op::$op(this.id, other.id), this.id, other.id, $f)
            }
        }
    };
}

operator!(Add, add, Add, |x, y| x + y);
operator!(Sub, sub, Subtract, |x, y| x - y);
operator!(Mul, mul, Multiply, |x, y| x * y);
operator!(Div, div, Divide, |x, y| x / y);

impl<'t> Neg for V<'t> {
    type Output = V<'t>;
    fn neg(self) -> V<'t> {
        self.unary(Op::Negate, |x| -x)
    }
}
