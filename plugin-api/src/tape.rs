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

use std::cell::{OnceCell, RefCell};
use std::ops::{Add, Div, Mul, Neg, Sub};

use crate::PluginError;
use crate::loss::{Batch, Gradients, Loss, Needs, Role, Sequence, TokenRule, Totals};

/// The statistics that have a derivative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Statistic {
    Logp,
    Entropy,
    Lse,
    MeanLogp,
    Value,
}

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

/// A batch whose statistics are values on a tape.
pub struct TapeBatch<'t> {
    tape: &'t Tape,
    batch: Batch<'t>,
    /// Σ-ready: weight · logp of completion tokens, and of all tokens.
    completion_logp: OnceCell<V<'t>>,
    weighted_logp: OnceCell<V<'t>>,
    leaves: RefCell<Vec<(Statistic, V<'t>)>>,
    metrics: RefCell<Vec<(String, f64)>>,
}

impl<'t> TapeBatch<'t> {
    fn new(tape: &'t Tape, batch: Batch<'t>) -> TapeBatch<'t> {
        TapeBatch {
            tape,
            batch,
            completion_logp: OnceCell::new(),
            weighted_logp: OnceCell::new(),
            leaves: RefCell::new(Vec::new()),
            metrics: RefCell::new(Vec::new()),
        }
    }

    /// The plain batch.
    pub fn batch(&self) -> &Batch<'t> {
        &self.batch
    }

    /// Of the whole accumulated step: what to divide by.
    pub fn totals(&self) -> &'t Totals {
        self.batch.totals
    }

    /// What [`Formula::prepare`] returned for this step.
    pub fn context(&self) -> &'t [f64] {
        self.batch.context
    }

    pub fn constant(&self, value: f64) -> V<'t> {
        self.tape.push(Op::Constant, vec![value])
    }

    /// A constant for each token; masked tokens' are taken as zero.
    pub fn constants(&self, values: impl IntoIterator<Item = f64>) -> V<'t> {
        let masked = values.into_iter().zip(self.batch.weight).map(|(x, w)| if *w == 0.0 { 0.0 } else { x });
        self.tape.push(Op::Constant, masked.collect())
    }

    fn leaf(&self, statistic: Statistic, name: &str, values: Option<&[f32]>) -> Result<V<'t>, PluginError> {
        if let Some((_, known)) = self.leaves.borrow().iter().find(|(known, _)| *known == statistic) {
            return Ok(*known);
        }
        let values =
            values.ok_or_else(|| PluginError::Batch(format!("the loss uses {name} but does not ask for it")))?;
        let value = if statistic == Statistic::Value {
            values.iter().map(|x| f64::from(*x)).collect()
        } else {
            let masked = values.iter().zip(self.batch.weight);
            masked.map(|(x, weight)| if *weight == 0.0 { 0.0 } else { f64::from(*x) }).collect()
        };
        let leaf = self.tape.push(Op::Leaf, value);
        self.leaves.borrow_mut().push((statistic, leaf));
        Ok(leaf)
    }

    /// Each token's log-probability.
    pub fn logp(&self) -> V<'t> {
        // `logp` is always in a batch, so this leaf cannot fail.
        self.leaf(Statistic::Logp, "logp", Some(self.batch.logp)).unwrap_or_else(|_| self.constant(f64::NAN))
    }

    /// # Errors
    /// When the loss did not ask for it; so with the other statistics.
    pub fn entropy(&self) -> Result<V<'t>, PluginError> {
        self.leaf(Statistic::Entropy, "entropy", self.batch.entropy)
    }

    pub fn lse(&self) -> Result<V<'t>, PluginError> {
        self.leaf(Statistic::Lse, "lse", self.batch.lse)
    }

    pub fn mean_logp(&self) -> Result<V<'t>, PluginError> {
        self.leaf(Statistic::MeanLogp, "mean_logp", self.batch.mean_logp)
    }

    /// The value head's output for each sequence.
    pub fn values(&self) -> Result<V<'t>, PluginError> {
        self.leaf(Statistic::Value, "value", self.batch.values)
    }

    /// Each token's weight, a constant.
    pub fn weight(&self) -> V<'t> {
        self.constants(self.batch.weight.iter().map(|w| f64::from(*w)))
    }

    /// Σ weight · value over the batch's tokens, divided by the weight of the
    /// whole step: the token mean, once micro-batches are added up.
    pub fn token_mean(&self, value: V<'t>) -> V<'t> {
        (self.weight() * value).sum() / positive(self.totals().weight())
    }

    /// The sum of numbers; 0 for none.
    pub fn sum(&self, values: impl IntoIterator<Item = V<'t>>) -> V<'t> {
        values.into_iter().fold(self.constant(0.0), |sum, value| sum + value)
    }

    /// The batch's sequences in order.
    pub fn sequences(&self) -> impl Iterator<Item = Seq<'_, 't>> {
        (0..self.batch.sequences.len()).map(|index| Seq { batch: self, index })
    }

    /// (chosen, rejected) of every pair; see [`Batch::pairs`].
    pub fn pairs(&self) -> Result<Vec<(Seq<'_, 't>, Seq<'_, 't>)>, PluginError> {
        let of = |index| Seq { batch: self, index };
        Ok(self.batch.pairs()?.into_iter().map(|(chosen, rejected)| (of(chosen), of(rejected))).collect())
    }

    /// Adds to a number for the report; divide it by the step's totals, as the
    /// loss.
    pub fn metric(&self, name: &str, value: f64) {
        let mut metrics = self.metrics.borrow_mut();
        match metrics.iter_mut().find(|(known, _)| known == name) {
            Some((_, sum)) => *sum += value,
            None => metrics.push((name.to_string(), value)),
        }
    }

    fn weighted_logp(&self) -> V<'t> {
        *self.weighted_logp.get_or_init(|| self.logp() * self.weight())
    }

    fn completion_logp(&self) -> V<'t> {
        *self.completion_logp.get_or_init(|| {
            let weight = self.batch.weight.iter().zip(self.batch.completion);
            let weight = self.constants(weight.map(|(w, completion)| if *completion { f64::from(*w) } else { 0.0 }));
            self.logp() * weight
        })
    }
}

/// A divisor: 1 for an empty total, whose sums are all zero anyway.
pub fn positive(total: f64) -> f64 {
    if total > 0.0 { total } else { 1.0 }
}

/// One sequence of a [`TapeBatch`].
#[derive(Clone, Copy)]
pub struct Seq<'b, 't> {
    batch: &'b TapeBatch<'t>,
    index: usize,
}

impl<'b, 't> Seq<'b, 't> {
    fn sequence(&self) -> &'t Sequence {
        &self.batch.batch.sequences[self.index]
    }

    pub fn role(&self) -> Role {
        self.sequence().role
    }

    pub fn label(&self) -> Option<bool> {
        self.sequence().label
    }

    pub fn reward(&self) -> Option<f64> {
        self.sequence().reward.map(f64::from)
    }

    /// The summed weight of its completion tokens: their number, as a rule.
    pub fn completion_weight(&self) -> f64 {
        self.completion_tokens().map(|i| f64::from(self.batch.batch.weight[i])).sum()
    }

    fn completion_tokens(&self) -> impl Iterator<Item = usize> + use<'t> {
        let completion = self.batch.batch.completion;
        self.sequence().tokens.clone().filter(move |i| completion[*i])
    }

    /// Σ weight · logp over its completion.
    pub fn logp(&self) -> V<'t> {
        let tokens = &self.sequence().tokens;
        self.batch.completion_logp().range_sum(tokens.start, tokens.end)
    }

    /// [`Seq::logp`] over the completion's weight: the mean log-probability.
    pub fn mean_logp(&self) -> V<'t> {
        self.logp() / positive(self.completion_weight())
    }

    /// Σ weight · logp over all its counted tokens, the prompt's where counted.
    pub fn whole_logp(&self) -> V<'t> {
        let tokens = &self.sequence().tokens;
        self.batch.weighted_logp().range_sum(tokens.start, tokens.end)
    }

    /// Σ weight · reference logp over its completion; NaN when the loss did not
    /// ask for the reference, which fails the step.
    pub fn reference_logp(&self) -> f64 {
        let Some(reference) = self.batch.batch.reference_logp else {
            return f64::NAN;
        };
        let weight = self.batch.batch.weight;
        self.completion_tokens()
            .filter(|i| weight[*i] != 0.0)
            .map(|i| f64::from(weight[i]) * f64::from(reference[i]))
            .sum()
    }

    /// log π(y|x) − log π_ref(y|x), summed over the completion.
    pub fn log_ratio(&self) -> V<'t> {
        self.logp() - self.reference_logp()
    }

    /// [`Seq::log_ratio`] over the completion's weight.
    pub fn mean_log_ratio(&self) -> V<'t> {
        self.log_ratio() / positive(self.completion_weight())
    }

    /// The value head's number.
    pub fn value(&self) -> Result<V<'t>, PluginError> {
        let values = self.batch.values()?;
        let value = self.batch.tape.nodes.borrow()[values.id].value[self.index];
        Ok(self.batch.tape.push(Op::Element(values.id, self.index), vec![value]))
    }
}

/// A loss as its formula; the tape does the rest. Every formula is a
/// [`Loss`], whose methods of the same names say more.
pub trait Formula: Send {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// This micro-batch's part of the step's loss, one number.
    fn loss<'t>(&self, batch: &TapeBatch<'t>) -> Result<V<'t>, PluginError>;

    fn prepare(&self, step: &Batch) -> Result<Vec<f64>, PluginError> {
        let _ = step;
        Ok(Vec::new())
    }

    fn end_step(&mut self, loss: f64, metrics: &[(String, f64)]) {
        let _ = (loss, metrics);
    }

    fn state(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), PluginError> {
        if state.is_empty() {
            return Ok(());
        }
        Err(PluginError::Failed("this loss keeps no state, but the checkpoint holds one".into()))
    }
}

impl<F: Formula> Loss for F {
    fn needs(&self) -> Needs {
        Formula::needs(self)
    }

    fn prepare(&self, step: &Batch) -> Result<Vec<f64>, PluginError> {
        Formula::prepare(self, step)
    }

    fn evaluate(&self, batch: &Batch, out: &mut Gradients) -> Result<(), PluginError> {
        let needs = Formula::needs(self);
        batch.check(&needs)?;
        out.reset(&needs, batch);
        let tape = Tape::default();
        let recorded = TapeBatch::new(&tape, *batch);
        let loss = self.loss(&recorded)?;
        let length = tape.nodes.borrow()[loss.id].value.len();
        if length != 1 {
            return Err(PluginError::shape("the formula's result", "one number", format!("{length} numbers")));
        }
        out.loss = loss.value();
        let adjoint = tape.backward(loss.id);
        for (statistic, leaf) in recorded.leaves.borrow().iter() {
            let Some(adjoint) = adjoint.get(leaf.id).filter(|adjoint| !adjoint.is_empty()) else {
                continue;
            };
            let into = match statistic {
                Statistic::Logp => Some(&mut out.dlogp),
                Statistic::Entropy => out.dentropy.as_mut(),
                Statistic::Lse => out.dlse.as_mut(),
                Statistic::MeanLogp => out.dmean_logp.as_mut(),
                Statistic::Value => out.dvalue.as_mut(),
            };
            let Some(into) = into else { continue };
            let per_token = *statistic != Statistic::Value;
            for (i, (into, d)) in into.iter_mut().zip(adjoint).enumerate() {
                let masked = per_token && batch.weight[i] == 0.0;
                *into = if masked { 0.0 } else { *d as f32 };
            }
        }
        out.metrics = recorded.metrics.take();
        Ok(())
    }

    fn separable(&self, _: &Totals) -> Option<TokenRule> {
        None
    }

    fn end_step(&mut self, loss: f64, metrics: &[(String, f64)]) {
        Formula::end_step(self, loss, metrics);
    }

    fn state(&self) -> Vec<u8> {
        Formula::state(self)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), PluginError> {
        Formula::restore(self, state)
    }
}
