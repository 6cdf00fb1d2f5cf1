//! What makes a program well formed.

use super::{Axis, Instruction, MOST_INSTRUCTIONS, MOST_STATES, Unchecked, ValueShape};
use crate::PluginError;

fn wrong(at: usize, reason: impl Into<String>) -> PluginError {
    PluginError::Program { at, reason: reason.into() }
}

/// Every value's shape, or the first mistake.
pub(super) fn check(program: &Unchecked) -> Result<Vec<ValueShape>, PluginError> {
    let code = &program.code;
    if code.len() > MOST_INSTRUCTIONS {
        return Err(wrong(MOST_INSTRUCTIONS, format!("more than {MOST_INSTRUCTIONS} instructions")));
    }
    let size = |rows: usize, columns: usize| {
        rows.checked_mul(columns).filter(|n| (1..=isize::MAX as usize / 8).contains(n)).is_some()
    };
    if !size(program.rows, program.columns) {
        return Err(wrong(0, format!("a parameter of {} by {} elements", program.rows, program.columns)));
    }
    if program.states.len() > MOST_STATES {
        return Err(wrong(0, format!("{} states, more than {MOST_STATES}", program.states.len())));
    }
    for (i, state) in program.states.iter().enumerate() {
        state.check(program.rows, program.columns).map_err(|reason| wrong(0, reason))?;
        if program.states[..i].iter().any(|other| other.name == state.name) {
            return Err(wrong(0, format!("two states are called '{}'", state.name)));
        }
    }
    let mut shapes: Vec<ValueShape> = Vec::with_capacity(code.len());
    for (at, instruction) in code.iter().enumerate() {
        if let Some(operand) = instruction.operands().find(|operand| operand.index() >= at) {
            return Err(wrong(at, format!("uses value {} before it is defined", operand.0)));
        }
        let shape = shape_of(program, instruction, &shapes).map_err(|reason| wrong(at, reason))?;
        if !size(shape.rows, shape.columns) {
            return Err(wrong(at, format!("a value of {} by {} elements is too large", shape.rows, shape.columns)));
        }
        shapes.push(shape);
    }
    let full = (program.rows, program.columns);
    output(&shapes, "the new parameter", program.parameter.index(), full)?;
    if program.updates.len() != program.states.len() {
        return Err(wrong(
            code.len(),
            format!("{} updates for {} states", program.updates.len(), program.states.len()),
        ));
    }
    for (state, update) in program.states.iter().zip(&program.updates) {
        if let Some(update) = update {
            output(&shapes, &format!("the new '{}'", state.name), update.index(), (state.rows, state.columns))?;
        }
    }
    Ok(shapes)
}

/// An output must exist and have exactly the shape of what it replaces.
fn output(shapes: &[ValueShape], what: &str, id: usize, (rows, columns): (usize, usize)) -> Result<(), PluginError> {
    match shapes.get(id) {
        None => Err(wrong(id, format!("{what} is a value that does not exist"))),
        Some(shape) if (shape.rows, shape.columns) != (rows, columns) => Err(wrong(
            id,
            format!("{what} has {} by {} elements, expected {rows} by {columns}", shape.rows, shape.columns),
        )),
        Some(_) => Ok(()),
    }
}

fn shape_of(program: &Unchecked, instruction: &Instruction, shapes: &[ValueShape]) -> Result<ValueShape, String> {
    let tensor = |rows, columns| Ok(ValueShape { rows, columns, uniform: false });
    let uniform = Ok(ValueShape { rows: 1, columns: 1, uniform: true });
    let of = |id: super::ValueId| shapes[id.index()];
    match *instruction {
        Instruction::Parameter | Instruction::Gradient => tensor(program.rows, program.columns),
        Instruction::State(index) => match program.states.get(index as usize) {
            Some(state) => tensor(state.rows, state.columns),
            None => Err(format!("reads state {index} of {}", program.states.len())),
        },
        Instruction::LearningRate | Instruction::Step => uniform,
        Instruction::Constant(constant) if constant.is_finite() => uniform,
        Instruction::Constant(constant) => Err(format!("the constant {constant} is not finite")),
        Instruction::Unary(_, a) => Ok(of(a)),
        Instruction::Binary(op, a, b) => {
            broadcast(of(a), of(b)).ok_or_else(|| format!("{op:?} of {} and {}", said(of(a)), said(of(b))))
        }
        Instruction::Select(c, a, b) => broadcast(of(c), of(a))
            .and_then(|shape| broadcast(shape, of(b)))
            .ok_or_else(|| format!("select of {}, {} and {}", said(of(c)), said(of(a)), said(of(b)))),
        Instruction::Reduce(_, axis, a) => {
            let shape = of(a);
            let (rows, columns) = match axis {
                Axis::All => (1, 1),
                Axis::EachRow => (shape.rows, 1),
                Axis::EachColumn => (1, shape.columns),
            };
            Ok(ValueShape { rows, columns, uniform: shape.uniform })
        }
        Instruction::MatMul(a, b) => {
            let (a, b) = (of(a), of(b));
            if a.columns != b.rows {
                return Err(format!("matrix product of {} and {}", said(a), said(b)));
            }
            Ok(ValueShape { rows: a.rows, columns: b.columns, uniform: a.uniform && b.uniform })
        }
        Instruction::Transpose(a) => {
            let shape = of(a);
            Ok(ValueShape { rows: shape.columns, columns: shape.rows, uniform: shape.uniform })
        }
    }
}

fn said(shape: ValueShape) -> String {
    format!("{} by {}", shape.rows, shape.columns)
}

/// The shape of an elementwise operation, a dimension of 1 being repeated.
fn broadcast(a: ValueShape, b: ValueShape) -> Option<ValueShape> {
    let one = |x: usize, y: usize| match (x, y) {
        _ if x == y => Some(x),
        (1, y) => Some(y),
        (x, 1) => Some(x),
        _ => None,
    };
    Some(ValueShape {
        rows: one(a.rows, b.rows)?,
        columns: one(a.columns, b.columns)?,
        uniform: a.uniform && b.uniform,
    })
}
