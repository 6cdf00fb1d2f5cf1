//! Optimizer programs: an update rule as a list of instructions.
//!
//! Every tensor is seen as a matrix (rows, columns); a vector is one row. A
//! program is in SSA form: instruction `i` defines value `i` from earlier
//! values. It reads the parameter, its gradient, its states, the learning rate
//! and the step (1 for the first), and names which values become the new
//! parameter and the new states. Elementwise operations broadcast a dimension
//! of size 1, as NumPy does.
//!
//! # Numbers
//! A value that depends on constants, the learning rate and the step alone is
//! *uniform*: it is computed in f64, once, and rounded to f32 where it meets a
//! tensor (so that 1 − βᵗ is exact enough at the first step). All else is f32,
//! each operation rounded by itself (no fused multiply-add), sums accumulated
//! in f64. [`interpret`] is the definition; devices agree with it.
//!
//! Authors write programs with operators, see [`Rule`]; every way of making a
//! [`Program`] checks it, reading one from another process included.

mod build;
mod check;
mod interpret;
mod state;

pub use build::{Rule, Value};
pub use interpret::{interpret, scalar_binary, scalar_unary};
pub use state::{BLOCK, Initial, State, StateBuffer, StateSlice, StateType, codes};

use crate::PluginError;

/// The most instructions a program may have.
pub const MOST_INSTRUCTIONS: usize = 1024;

/// The most states a program may have: an executor keeps a place for each.
pub const MOST_STATES: usize = 8;

/// The number of a value: the place of the instruction that defines it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ValueId(pub u32);

impl ValueId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Operations on one operand, elementwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unary {
    Negate,
    Absolute,
    /// −1, 0 or 1; 0 for ±0, NaN for NaN.
    Sign,
    Sqrt,
    Exp,
    Ln,
    /// Rounded to bfloat16, to nearest even, and back.
    RoundBf16,
}

/// Operations on two operands, elementwise with broadcasting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
    /// The smaller; the other operand where one is NaN.
    Minimum,
    Maximum,
    /// a to the power of b.
    Power,
    /// 1 where a < b, else 0.
    Less,
}

/// How many elements become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    Sum,
    Maximum,
}

/// What remains after a reduction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// One number, (1, 1).
    All,
    /// One number for each row, (rows, 1).
    EachRow,
    /// One number for each column, (1, columns).
    EachColumn,
}

/// One instruction; it defines the value of its own place.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Instruction {
    Parameter,
    Gradient,
    /// The state of that place in [`Program::states`], as it was before the step.
    State(u32),
    LearningRate,
    /// 1 in the first step.
    Step,
    Constant(f64),
    Unary(Unary, ValueId),
    Binary(Binary, ValueId, ValueId),
    /// The second where the first is not 0, else the third.
    Select(ValueId, ValueId, ValueId),
    Reduce(Reduction, Axis, ValueId),
    /// (m, k) by (k, n): sums over k accumulate in f32, in any order.
    MatMul(ValueId, ValueId),
    Transpose(ValueId),
}

impl Instruction {
    /// The values it reads.
    pub fn operands(&self) -> impl Iterator<Item = ValueId> + use<> {
        let operands = match *self {
            Instruction::Unary(_, a) | Instruction::Reduce(_, _, a) | Instruction::Transpose(a) => {
                [Some(a), None, None]
            }
            Instruction::Binary(_, a, b) | Instruction::MatMul(a, b) => [Some(a), Some(b), None],
            Instruction::Select(a, b, c) => [Some(a), Some(b), Some(c)],
            _ => [None, None, None],
        };
        operands.into_iter().flatten()
    }
}

/// The shape of a value, and whether it is uniform (see the module's words).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ValueShape {
    pub rows: usize,
    pub columns: usize,
    /// Known before any tensor is read; always (1, 1).
    pub uniform: bool,
}

impl ValueShape {
    pub fn elements(&self) -> usize {
        self.rows * self.columns
    }
}

/// The numbers that change from step to step.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Scalars {
    pub learning_rate: f64,
    /// 1 in the first step.
    pub step: u64,
}

/// A checked update rule for one tensor.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct Program {
    rows: usize,
    columns: usize,
    states: Vec<State>,
    code: Vec<Instruction>,
    parameter: ValueId,
    updates: Vec<Option<ValueId>>,
    shapes: Vec<ValueShape>,
}

/// A program as it crosses the door, before it is checked.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Unchecked {
    pub rows: usize,
    pub columns: usize,
    pub states: Vec<State>,
    pub code: Vec<Instruction>,
    /// The new parameter.
    pub parameter: ValueId,
    /// The new value of each state; `None` leaves it.
    pub updates: Vec<Option<ValueId>>,
}

impl TryFrom<Unchecked> for Program {
    type Error = PluginError;

    fn try_from(unchecked: Unchecked) -> Result<Program, PluginError> {
        let shapes = check::check(&unchecked)?;
        let Unchecked { rows, columns, states, code, parameter, updates } = unchecked;
        Ok(Program { rows, columns, states, code, parameter, updates, shapes })
    }
}

impl From<Program> for Unchecked {
    fn from(program: Program) -> Unchecked {
        let Program { rows, columns, states, code, parameter, updates, .. } = program;
        Unchecked { rows, columns, states, code, parameter, updates }
    }
}

impl Program {
    /// Rows of the parameter's matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    pub fn elements(&self) -> usize {
        self.rows * self.columns
    }

    pub fn states(&self) -> &[State] {
        &self.states
    }

    pub fn code(&self) -> &[Instruction] {
        &self.code
    }

    /// The shape of every value.
    pub fn shapes(&self) -> &[ValueShape] {
        &self.shapes
    }

    pub fn shape(&self, value: ValueId) -> ValueShape {
        self.shapes[value.index()]
    }

    /// The value that becomes the parameter.
    pub fn parameter(&self) -> ValueId {
        self.parameter
    }

    /// The value that becomes each state; `None` leaves it as it is.
    pub fn updates(&self) -> &[Option<ValueId>] {
        &self.updates
    }

    /// Bytes of all states.
    pub fn state_bytes(&self) -> usize {
        self.states.iter().map(State::bytes).sum()
    }

    /// Fresh states for a parameter.
    ///
    /// # Errors
    /// When `parameter` has not the program's size.
    pub fn initial_states(&self, parameter: &[f32]) -> Result<Vec<StateBuffer>, PluginError> {
        if parameter.len() != self.elements() {
            return Err(PluginError::shape("initial_states", self.elements(), parameter.len()));
        }
        Ok(self.states.iter().map(|state| StateBuffer::new(state, parameter)).collect())
    }

    /// The uniform values of a step, in f64; others are NaN. `into` is resized.
    pub fn uniforms(&self, scalars: &Scalars, into: &mut Vec<f64>) {
        into.clear();
        for (instruction, shape) in self.code.iter().zip(&self.shapes) {
            let value = |id: &ValueId| into[id.index()];
            into.push(match instruction {
                _ if !shape.uniform => f64::NAN,
                Instruction::LearningRate => scalars.learning_rate,
                Instruction::Step => scalars.step as f64,
                Instruction::Constant(constant) => *constant,
                Instruction::Unary(op, a) => interpret::uniform_unary(*op, value(a)),
                Instruction::Binary(op, a, b) => interpret::uniform_binary(*op, value(a), value(b)),
                Instruction::Select(c, a, b) => {
                    if value(c) != 0.0 {
                        value(a)
                    } else {
                        value(b)
                    }
                }
                Instruction::Transpose(a) | Instruction::Reduce(_, _, a) => value(a),
                Instruction::MatMul(a, b) => value(a) * value(b),
                Instruction::Parameter | Instruction::Gradient | Instruction::State(_) => f64::NAN,
            });
        }
    }
}
