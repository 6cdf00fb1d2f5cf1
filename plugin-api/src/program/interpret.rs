//! The definition of what a program computes: plain loops in f32.

use super::{Axis, Binary, Instruction, Program, Reduction, Scalars, StateSlice, Unary, ValueId, ValueShape};
use crate::PluginError;

/// One element of a unary operation in f32.
#[inline(always)]
pub fn scalar_unary(op: Unary, x: f32) -> f32 {
    match op {
        Unary::Negate => -x,
        Unary::Absolute => x.abs(),
        Unary::Sign => {
            if x > 0.0 {
                1.0
            } else if x < 0.0 {
                -1.0
            } else {
                // ±0 and NaN.
                x + 0.0
            }
        }
        Unary::Sqrt => x.sqrt(),
        Unary::Exp => x.exp(),
        Unary::Ln => x.ln(),
        Unary::RoundBf16 => round_bf16(x),
    }
}

/// One element of a binary operation in f32.
#[inline(always)]
pub fn scalar_binary(op: Binary, a: f32, b: f32) -> f32 {
    match op {
        Binary::Add => a + b,
        Binary::Subtract => a - b,
        Binary::Multiply => a * b,
        Binary::Divide => a / b,
        Binary::Minimum => a.min(b),
        Binary::Maximum => a.max(b),
        Binary::Power => a.powf(b),
        Binary::Less => f32::from(a < b),
    }
}

#[inline(always)]
fn round_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    // To nearest even; a NaN stays one because its quiet bit lies above.
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    if x.is_nan() { x } else { f32::from_bits(rounded) }
}

pub(super) fn uniform_unary(op: Unary, x: f64) -> f64 {
    match op {
        Unary::Negate => -x,
        Unary::Absolute => x.abs(),
        Unary::Sign if x > 0.0 => 1.0,
        Unary::Sign if x < 0.0 => -1.0,
        Unary::Sign => x + 0.0,
        Unary::Sqrt => x.sqrt(),
        Unary::Exp => x.exp(),
        Unary::Ln => x.ln(),
        Unary::RoundBf16 => f64::from(round_bf16(x as f32)),
    }
}

pub(super) fn uniform_binary(op: Binary, a: f64, b: f64) -> f64 {
    match op {
        Binary::Add => a + b,
        Binary::Subtract => a - b,
        Binary::Multiply => a * b,
        Binary::Divide => a / b,
        Binary::Minimum => a.min(b),
        Binary::Maximum => a.max(b),
        Binary::Power => a.powf(b),
        Binary::Less => f64::from(a < b),
    }
}

/// Runs one step by the definition, changing `parameter` and `states`.
///
/// # Errors
/// When a size or a state's type is not the program's.
pub fn interpret(
    program: &Program,
    parameter: &mut [f32],
    gradient: &[f32],
    states: &mut [StateSlice],
    scalars: &Scalars,
) -> Result<(), PluginError> {
    let n = program.elements();
    if parameter.len() != n || gradient.len() != n {
        return Err(PluginError::shape("optimizer step", n, format!("{} and {}", parameter.len(), gradient.len())));
    }
    if states.len() != program.states().len() {
        return Err(PluginError::shape("optimizer states", program.states().len(), states.len()));
    }
    for (state, slice) in program.states().iter().zip(states.iter()) {
        if !slice.fits(state) {
            return Err(PluginError::shape(
                &format!("optimizer state '{}'", state.name),
                format!("{} elements of {:?}", state.elements(), state.kind),
                format!("{} elements", slice.elements()),
            ));
        }
    }
    let mut uniforms = Vec::new();
    program.uniforms(scalars, &mut uniforms);
    let mut values: Vec<Vec<f32>> = Vec::with_capacity(program.code().len());
    for (at, (instruction, shape)) in program.code().iter().zip(program.shapes()).enumerate() {
        values.push(if shape.uniform {
            vec![uniforms[at] as f32]
        } else {
            compute(program, instruction, *shape, &values, parameter, gradient, states)
        });
    }
    parameter.copy_from_slice(&values[program.parameter().index()]);
    for (slice, update) in states.iter_mut().zip(program.updates()) {
        if let Some(update) = update {
            slice.write(0, &values[update.index()]);
        }
    }
    Ok(())
}

fn compute(
    program: &Program,
    instruction: &Instruction,
    shape: ValueShape,
    values: &[Vec<f32>],
    parameter: &[f32],
    gradient: &[f32],
    states: &[StateSlice],
) -> Vec<f32> {
    // An operand's element at (row, column) of the result, repeated where it
    // has one row or column.
    let at = |id: ValueId, row: usize, column: usize| {
        let from = program.shape(id);
        let row = if from.rows == 1 { 0 } else { row };
        let column = if from.columns == 1 { 0 } else { column };
        values[id.index()][row * from.columns + column]
    };
    let each = |f: &dyn Fn(usize, usize) -> f32| {
        (0..shape.rows).flat_map(|row| (0..shape.columns).map(move |column| f(row, column))).collect()
    };
    match *instruction {
        Instruction::Parameter => parameter.to_vec(),
        Instruction::Gradient => gradient.to_vec(),
        Instruction::State(index) => {
            let mut values = vec![0.0; shape.elements()];
            states[index as usize].read(0, &mut values);
            values
        }
        Instruction::Unary(op, a) => each(&|row, column| scalar_unary(op, at(a, row, column))),
        Instruction::Binary(op, a, b) => each(&|row, column| scalar_binary(op, at(a, row, column), at(b, row, column))),
        Instruction::Select(c, a, b) => each(&|row, column| {
            if at(c, row, column) != 0.0 { at(a, row, column) } else { at(b, row, column) }
        }),
        Instruction::Transpose(a) => each(&|row, column| at(a, column, row)),
        Instruction::MatMul(a, b) => {
            let inner = program.shape(a).columns;
            each(&|row, column| (0..inner).map(|k| at(a, row, k) * at(b, k, column)).sum())
        }
        Instruction::Reduce(op, axis, a) => {
            let from = program.shape(a);
            let mut sums = vec![op.start(); shape.elements()];
            for row in 0..from.rows {
                for column in 0..from.columns {
                    let into = match axis {
                        Axis::All => 0,
                        Axis::EachRow => row,
                        Axis::EachColumn => column,
                    };
                    op.add(&mut sums[into], values[a.index()][row * from.columns + column]);
                }
            }
            sums.into_iter().map(|sum| sum as f32).collect()
        }
        // Uniform by nature: never asked for here.
        Instruction::LearningRate | Instruction::Step | Instruction::Constant(_) => vec![f32::NAN],
    }
}

impl Reduction {
    /// What an empty reduction holds.
    #[inline]
    pub fn start(self) -> f64 {
        match self {
            Reduction::Sum => 0.0,
            Reduction::Maximum => f64::NEG_INFINITY,
        }
    }

    /// Takes in one more element.
    #[inline(always)]
    pub fn add(self, sum: &mut f64, x: f32) {
        match self {
            Reduction::Sum => *sum += f64::from(x),
            Reduction::Maximum => *sum = sum.max(f64::from(x)),
        }
    }

    /// Takes in another partial result.
    #[inline]
    pub fn merge(self, sum: &mut f64, other: f64) {
        match self {
            Reduction::Sum => *sum += other,
            Reduction::Maximum => *sum = sum.max(other),
        }
    }
}
