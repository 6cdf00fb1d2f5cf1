//! Writing a program with operators.
//!
//! ```
//! use finetuned_plugin_api::optimizer::{TensorKind, TensorShape};
//! use finetuned_plugin_api::program::{Initial, Rule, StateType};
//!
//! # fn lion(tensor: &TensorShape) -> Result<finetuned_plugin_api::program::Program, finetuned_plugin_api::PluginError> {
//! let rule = Rule::new(tensor);
//! let (p, g, lr) = (rule.parameter(), rule.gradient(), rule.learning_rate());
//! let m = rule.state("m", StateType::F32);
//! let update = (m * 0.9 + g * 0.1).sign();
//! rule.set(m, m * 0.99 + g * 0.01);
//! rule.finish(p - lr * (update + p * 0.01))
//! # }
//! # lion(&TensorShape { shape: vec![2, 3], name: "w".into(), kind: TensorKind::Matrix }).unwrap();
//! ```

use std::cell::RefCell;
use std::ops::{Add, Div, Mul, Neg, Sub};

use super::{Axis, Binary, Initial, Instruction, Program, Reduction, State, StateType, Unary, Unchecked, ValueId};
use crate::PluginError;
use crate::optimizer::TensorShape;

/// A program being written.
pub struct Rule {
    inner: RefCell<Unchecked>,
    /// The shapes so far, for the helpers that need a size; a mistaken
    /// instruction gets (1, 1) here and is reported by [`Rule::finish`].
    shapes: RefCell<Vec<(usize, usize)>>,
    mistake: RefCell<Option<PluginError>>,
}

/// A value of a program being written; operators on it append instructions.
#[derive(Clone, Copy)]
pub struct Value<'r> {
    rule: &'r Rule,
    id: ValueId,
}

impl Rule {
    /// Begins a program for a tensor, seen as [`TensorShape::matrix`].
    pub fn new(tensor: &TensorShape) -> Rule {
        let (rows, columns) = tensor.matrix();
        Rule {
            inner: RefCell::new(Unchecked {
                rows,
                columns,
                states: Vec::new(),
                code: Vec::new(),
                parameter: ValueId(0),
                updates: Vec::new(),
            }),
            shapes: RefCell::new(Vec::new()),
            mistake: RefCell::new(None),
        }
    }

    /// (rows, columns) of the parameter.
    pub fn size(&self) -> (usize, usize) {
        let inner = self.inner.borrow();
        (inner.rows, inner.columns)
    }

    pub fn parameter(&self) -> Value<'_> {
        self.push(Instruction::Parameter, self.size())
    }

    pub fn gradient(&self) -> Value<'_> {
        self.push(Instruction::Gradient, self.size())
    }

    pub fn learning_rate(&self) -> Value<'_> {
        self.push(Instruction::LearningRate, (1, 1))
    }

    /// 1 in the first step.
    pub fn step(&self) -> Value<'_> {
        self.push(Instruction::Step, (1, 1))
    }

    pub fn constant(&self, value: f64) -> Value<'_> {
        self.push(Instruction::Constant(value), (1, 1))
    }

    /// A state of the parameter's shape that starts at zero.
    pub fn state(&self, name: &str, kind: StateType) -> Value<'_> {
        let (rows, columns) = self.size();
        self.state_with(State { name: name.into(), rows, columns, kind, initial: Initial::Constant(0.0) })
    }

    /// A state of the parameter's shape that starts as the parameter.
    pub fn copy_of_parameter(&self, name: &str) -> Value<'_> {
        let (rows, columns) = self.size();
        self.state_with(State { name: name.into(), rows, columns, kind: StateType::F32, initial: Initial::Parameter })
    }

    /// One f32 for each row, starting at zero.
    pub fn row_state(&self, name: &str) -> Value<'_> {
        self.small_state(name, self.size().0, 1)
    }

    /// One f32 for each column, starting at zero.
    pub fn column_state(&self, name: &str) -> Value<'_> {
        self.small_state(name, 1, self.size().1)
    }

    /// One f32, starting at zero.
    pub fn scalar_state(&self, name: &str) -> Value<'_> {
        self.small_state(name, 1, 1)
    }

    fn small_state(&self, name: &str, rows: usize, columns: usize) -> Value<'_> {
        let initial = Initial::Constant(0.0);
        self.state_with(State { name: name.into(), rows, columns, kind: StateType::F32, initial })
    }

    /// Any state. Its value is the one before the step.
    pub fn state_with(&self, state: State) -> Value<'_> {
        let shape = (state.rows, state.columns);
        let index = {
            let mut inner = self.inner.borrow_mut();
            inner.states.push(state);
            inner.updates.push(None);
            inner.states.len() - 1
        };
        self.push(Instruction::State(index as u32), shape)
    }

    /// What `state` (a value from one of the state methods) becomes.
    pub fn set(&self, state: Value, new: Value) {
        let mut inner = self.inner.borrow_mut();
        match inner.code.get(state.id.index()) {
            Some(Instruction::State(index)) => {
                let index = *index as usize;
                inner.updates[index] = Some(new.id);
            }
            _ => {
                let at = state.id.index();
                let reason = "set() is for a state, but this value is computed".to_string();
                self.mistake.borrow_mut().get_or_insert(PluginError::Program { at, reason });
            }
        }
    }

    /// Ends the program; `parameter` is what the parameter becomes.
    ///
    /// # Errors
    /// The first mistake, by the place of its instruction.
    pub fn finish(&self, parameter: Value) -> Result<Program, PluginError> {
        if let Some(mistake) = self.mistake.borrow().clone() {
            return Err(mistake);
        }
        let mut unchecked = self.inner.borrow().clone();
        unchecked.parameter = parameter.id;
        Program::try_from(unchecked)
    }

    fn push(&self, instruction: Instruction, shape: (usize, usize)) -> Value<'_> {
        let mut inner = self.inner.borrow_mut();
        inner.code.push(instruction);
        self.shapes.borrow_mut().push(shape);
        Value { rule: self, id: ValueId((inner.code.len() - 1) as u32) }
    }
}

impl<'r> Value<'r> {
    /// Its number in the program.
    pub fn id(self) -> ValueId {
        self.id
    }

    /// (rows, columns).
    pub fn size(self) -> (usize, usize) {
        self.rule.shapes.borrow()[self.id.index()]
    }

    fn unary(self, op: Unary) -> Value<'r> {
        self.rule.push(Instruction::Unary(op, self.id), self.size())
    }

    fn binary(self, op: Binary, other: Value<'r>) -> Value<'r> {
        let ((ar, ac), (br, bc)) = (self.size(), other.size());
        self.rule.push(Instruction::Binary(op, self.id, other.id), (ar.max(br), ac.max(bc)))
    }

    pub fn abs(self) -> Value<'r> {
        self.unary(Unary::Absolute)
    }

    pub fn sign(self) -> Value<'r> {
        self.unary(Unary::Sign)
    }

    pub fn sqrt(self) -> Value<'r> {
        self.unary(Unary::Sqrt)
    }

    pub fn exp(self) -> Value<'r> {
        self.unary(Unary::Exp)
    }

    pub fn ln(self) -> Value<'r> {
        self.unary(Unary::Ln)
    }

    pub fn square(self) -> Value<'r> {
        self * self
    }

    /// Rounded to bfloat16 and back.
    pub fn round_bf16(self) -> Value<'r> {
        self.unary(Unary::RoundBf16)
    }

    pub fn min(self, other: impl Operand<'r>) -> Value<'r> {
        self.binary(Binary::Minimum, other.value(self.rule))
    }

    pub fn max(self, other: impl Operand<'r>) -> Value<'r> {
        self.binary(Binary::Maximum, other.value(self.rule))
    }

    pub fn pow(self, exponent: impl Operand<'r>) -> Value<'r> {
        self.binary(Binary::Power, exponent.value(self.rule))
    }

    /// 1 where it is less, else 0.
    pub fn less(self, other: impl Operand<'r>) -> Value<'r> {
        self.binary(Binary::Less, other.value(self.rule))
    }

    /// `yes` where this value is not 0, else `no`.
    pub fn select(self, yes: impl Operand<'r>, no: impl Operand<'r>) -> Value<'r> {
        let (yes, no) = (yes.value(self.rule), no.value(self.rule));
        let ((ar, ac), (br, bc), (cr, cc)) = (self.size(), yes.size(), no.size());
        let shape = (ar.max(br).max(cr), ac.max(bc).max(cc));
        self.rule.push(Instruction::Select(self.id, yes.id, no.id), shape)
    }

    /// `self + (end − self) · weight`, in the form that PyTorch's `lerp` takes
    /// for this constant weight, so that results agree to the bit.
    pub fn lerp(self, end: Value<'r>, weight: f64) -> Value<'r> {
        if weight.abs() < 0.5 { self + (end - self) * weight } else { end - (end - self) * (1.0 - weight) }
    }

    fn reduce(self, op: Reduction, axis: Axis) -> Value<'r> {
        let (rows, columns) = self.size();
        let shape = match axis {
            Axis::All => (1, 1),
            Axis::EachRow => (rows, 1),
            Axis::EachColumn => (1, columns),
        };
        self.rule.push(Instruction::Reduce(op, axis, self.id), shape)
    }

    pub fn sum(self, axis: Axis) -> Value<'r> {
        self.reduce(Reduction::Sum, axis)
    }

    pub fn mean(self, axis: Axis) -> Value<'r> {
        let (rows, columns) = self.size();
        let count = match axis {
            Axis::All => rows * columns,
            Axis::EachRow => columns,
            Axis::EachColumn => rows,
        };
        self.sum(axis) / count as f64
    }

    pub fn maximum(self, axis: Axis) -> Value<'r> {
        self.reduce(Reduction::Maximum, axis)
    }

    /// The Euclidean (Frobenius) norm of all elements.
    pub fn norm(self) -> Value<'r> {
        self.square().sum(Axis::All).sqrt()
    }

    /// The matrix product.
    pub fn matmul(self, other: Value<'r>) -> Value<'r> {
        self.rule.push(Instruction::MatMul(self.id, other.id), (self.size().0, other.size().1))
    }

    pub fn transpose(self) -> Value<'r> {
        let (rows, columns) = self.size();
        self.rule.push(Instruction::Transpose(self.id), (columns, rows))
    }
}

/// What can stand beside a [`Value`]: another one, or a constant.
pub trait Operand<'r> {
    fn value(self, rule: &'r Rule) -> Value<'r>;
}

impl<'r> Operand<'r> for Value<'r> {
    fn value(self, _: &'r Rule) -> Value<'r> {
        self
    }
}

impl<'r> Operand<'r> for f64 {
    fn value(self, rule: &'r Rule) -> Value<'r> {
        rule.constant(self)
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident, $op:ident) => {
        impl<'r, T: Operand<'r>> $trait<T> for Value<'r> {
            type Output = Value<'r>;
            fn $method(self, other: T) -> Value<'r> {
                self.binary(Binary::$op, other.value(self.rule))
            }
        }
        impl<'r> $trait<Value<'r>> for f64 {
            type Output = Value<'r>;
            fn $method(self, other: Value<'r>) -> Value<'r> {
                other.rule.constant(self).binary(Binary::$op, other)
            }
        }
    };
}

operator!(Add, add, Add);
operator!(Sub, sub, Subtract);
operator!(Mul, mul, Multiply);
operator!(Div, div, Divide);

impl<'r> Neg for Value<'r> {
    type Output = Value<'r>;
    fn neg(self) -> Value<'r> {
        self.unary(Unary::Negate)
    }
}
