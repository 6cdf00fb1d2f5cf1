//! Optimizer programs on the CPU.
//!
//! A [`Program`] (see `finetuned_plugin_api::program`, whose `interpret` is the
//! definition) is planned once ([`super::plan`]) and then run as a few passes over
//! memory ([`stream`]): elementwise chains in blocks that stay in the first
//! cache, matrix products through `gemm`. AdamW is one pass; it reads p, g, m,
//! v and writes p, m, v at the speed of memory.
//!
//! # Bits
//! Elementwise operations give the bits of `interpret`. Sums are taken in f64
//! over pieces that follow from the shape alone, and matrix products in f32 in
//! `gemm`'s order, so a result depends on neither threads nor timing, and
//! agrees with `interpret` to rounding.
//!
//! # Memory
//! Plans, buffers and registers live in [`Scratch`] and are reused: after the
//! first step of each tensor a step allocates nothing, matrix products aside.

mod prefetch;
mod stream;

use finetuned_plugin_api::program::{MOST_STATES, Program, Scalars, StateSlice};

use super::plan::{Memory, Pass, Plan, Scalar};
use super::{MOST_PLANS, OP};
use crate::cpu::gemm::{Matrix, MatrixMut, Output, gemm_parallel};
use crate::cpu::workers::Workers;
use crate::error::{Result, TensorError, shape_error};
use stream::{Registers, States};

/// What steps keep from one to the next.
#[derive(Default)]
pub(crate) struct Scratch {
    plans: Vec<(Program, Plan)>,
    uniforms: Vec<f64>,
    room: Room,
}

/// Memory of a step.
#[derive(Default)]
struct Room {
    buffers: Vec<Vec<f32>>,
    scalars: Vec<f32>,
    /// A small state's new value, on its way.
    copy: Vec<f32>,
    partials: Vec<f64>,
    /// One per thread that was ever at work.
    registers: std::sync::Mutex<Vec<Registers>>,
}

/// Bytes of the buffers that steps of these programs come to share: each is as
/// large as the one that wants most of it.
pub(crate) fn scratch_bytes(programs: &[Program]) -> u64 {
    let mut sizes: Vec<usize> = Vec::new();
    for program in programs {
        for (index, size) in Plan::new(program).buffers.into_iter().enumerate() {
            match sizes.get_mut(index) {
                Some(largest) => *largest = size.max(*largest),
                None => sizes.push(size),
            }
        }
    }
    4 * sizes.iter().sum::<usize>() as u64
}

/// Runs one step, changing `parameter` and `states`.
///
/// # Errors
/// [`TensorError::Shape`] when a slice has not the program's size, or a state
/// not its type.
pub(crate) fn run<'a>(
    workers: &Workers,
    program: &Program,
    parameter: &mut [f32],
    gradient: &[f32],
    states: impl IntoIterator<Item = StateSlice<'a>>,
    scalars: &Scalars,
    scratch: &mut Scratch,
) -> Result<()> {
    let n = program.elements();
    if parameter.len() != n || gradient.len() != n {
        return Err(shape_error(OP, n.to_string(), format!("{} and {}", parameter.len(), gradient.len())));
    }
    let mut places: States = [const { None }; MOST_STATES];
    let mut given = 0;
    for state in states {
        let fits = program.states().get(given).is_some_and(|expected| state.fits(expected));
        if !fits {
            let expected = program.states().get(given).map_or("no further state".to_string(), |s| format!("{s:?}"));
            return Err(shape_error(OP, expected, format!("state {given} of {} elements", state.elements())));
        }
        places[given] = Some(state);
        given += 1;
    }
    if given != program.states().len() {
        return Err(shape_error(OP, format!("{} states", program.states().len()), given.to_string()));
    }
    let Scratch { plans, uniforms, room } = scratch;
    program.uniforms(scalars, uniforms);
    let size = (program.rows(), program.columns());
    let known = plans.iter().position(|(known, _)| (known.rows(), known.columns()) == size && known == program);
    let index = known.unwrap_or_else(|| {
        if plans.len() >= MOST_PLANS {
            plans.remove(0);
        }
        plans.push((program.clone(), Plan::new(program)));
        plans.len() - 1
    });
    let plan = &plans[index].1;
    room.reserve(plan)?;
    for pass in &plan.passes {
        let mut data = Data { uniforms, parameter, gradient, states: &mut places };
        match pass {
            Pass::Stream(stream) => stream::run(workers, stream, &mut data, room),
            Pass::MatMul { a, a_transposed, b, b_transposed, size, into } => {
                let mut result = std::mem::take(&mut room.buffers[*into]);
                let (m, k, n) = *size;
                let a = operand(data.read(room, *a), m, k, *a_transposed);
                let b = operand(data.read(room, *b), k, n, *b_transposed);
                gemm_parallel(workers, 1.0, a, b, Output::Overwrite, MatrixMut::new(&mut result[..m * n], m, n));
                room.buffers[*into] = result;
            }
            Pass::Transpose { from, rows, columns, into } => {
                let mut result = std::mem::take(&mut room.buffers[*into]);
                let from = &data.read(room, *from)[..rows * columns];
                for (row, from) in from.chunks(*columns).enumerate() {
                    for (column, x) in from.iter().enumerate() {
                        result[column * rows + row] = *x;
                    }
                }
                room.buffers[*into] = result;
            }
            Pass::Commit(small) => {
                let mut new = std::mem::take(&mut room.copy);
                new.clear();
                for (from, state) in small {
                    match from {
                        Scalar::Uniform(id) => new.push(data.uniforms[id.index()] as f32),
                        Scalar::Memory(memory) => {
                            let count = program.states()[*state].elements();
                            new.extend_from_slice(&data.read(room, *memory)[..count]);
                        }
                    }
                }
                let mut rest = &new[..];
                for (_, state) in small {
                    if let Some(state) = data.states[*state].as_mut() {
                        let (now, later) = rest.split_at(state.elements());
                        state.write(0, now);
                        rest = later;
                    }
                }
                room.copy = new;
            }
        }
    }
    Ok(())
}

/// A matrix as a product uses it, (rows, columns) after the transposition.
fn operand(data: &[f32], rows: usize, columns: usize, transposed: bool) -> Matrix<'_> {
    match transposed {
        true => Matrix::new(&data[..rows * columns], columns, rows).t(),
        false => Matrix::new(&data[..rows * columns], rows, columns),
    }
}

/// What a step reads and writes.
struct Data<'d, 's> {
    uniforms: &'d [f64],
    parameter: &'d mut [f32],
    gradient: &'d [f32],
    states: &'d mut States<'s>,
}

impl Data<'_, '_> {
    fn read<'r>(&'r self, room: &'r Room, memory: Memory) -> &'r [f32] {
        match memory {
            Memory::Parameter => self.parameter,
            Memory::Gradient => self.gradient,
            Memory::State(index) => match &self.states[index] {
                Some(StateSlice::F32(values)) => values,
                // The planner names f32 states only.
                _ => &[],
            },
            Memory::Buffer(index) => &room.buffers[index],
        }
    }
}

impl Room {
    /// Buffers as large as a plan wants them.
    fn reserve(&mut self, plan: &Plan) -> Result<()> {
        if self.buffers.len() < plan.buffers.len() {
            self.buffers.resize_with(plan.buffers.len(), Vec::new);
        }
        for (buffer, size) in self.buffers.iter_mut().zip(&plan.buffers) {
            if buffer.len() < *size {
                let more = *size - buffer.len();
                buffer.try_reserve_exact(more).map_err(|_| TensorError::Memory {
                    op: OP,
                    bytes: 4 * more,
                    device: "cpu".into(),
                })?;
                buffer.resize(*size, 0.0);
            }
        }
        Ok(())
    }
}
