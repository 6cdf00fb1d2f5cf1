//! Optimizer programs on the GPU.
//!
//! The planner of the CPU says which passes there are; [`lower`] turns them
//! into kernels, each generated from a list of steps ([`code`], [`kernels`]),
//! and [`run`] launches them. A maximal chain of elementwise operations is one
//! kernel: AdamW reads p, g, m, v and writes p, m, v once. Kernels are compiled
//! once for each list of steps and serve tensors of all shapes.
//!
//! # Numbers
//! Uniform values are computed on the host in f64, as the definition has it,
//! and reach the kernels in a table. Sums are taken in f32, in trees whose
//! shape follows from the matrix alone: the same call gives the same bits, and
//! differs from the definition's f64 by a few 1e-6 of the magnitudes summed.
//! Division, square roots, exponentials, logarithms and powers are as exact as
//! the device's own (a few units in the last place; powers up to 1e-5), and a
//! device may fuse a product with the sum after it.

mod code;
mod kernels;
mod lower;
mod run;
mod state;
#[cfg(test)]
mod tests;

use std::sync::{Arc, PoisonError};

use finetuned_plugin_api::program::{Program, Scalars};

use self::lower::Lowered;
use self::run::Run;
pub(crate) use self::state::{GpuState, read_state, states, write_state};
use super::{MOST_PLANS, OP};
use crate::error::{Result, shape_error};
use crate::gpu::Gpu;
use crate::ops::ProgramState;
use crate::tensor::Tensor;

/// What steps keep from one to the next.
#[derive(Default)]
struct Scratch {
    programs: Vec<(Program, Arc<Lowered>)>,
    uniforms: Vec<f64>,
}

impl Scratch {
    /// The program for kernels of at most `most` buffers, a device's own number.
    fn lowered(&mut self, program: &Program, most: usize) -> Arc<Lowered> {
        let size = (program.rows(), program.columns());
        let known = self.programs.iter().find(|(known, _)| (known.rows(), known.columns()) == size && known == program);
        if let Some((_, lowered)) = known {
            return lowered.clone();
        }
        if self.programs.len() >= MOST_PLANS {
            self.programs.remove(0);
        }
        let lowered = Arc::new(Lowered::new(program, most));
        self.programs.push((program.clone(), lowered.clone()));
        lowered
    }
}

/// Buffers that a chain may bind, beside the table and the runtime's own.
fn most_buffers(gpu: &Gpu) -> usize {
    const OTHERS: usize = 2;
    (gpu.client().properties().hardware.max_bindings as usize).saturating_sub(OTHERS)
}

/// Bytes of the buffers that a step of the largest of these programs makes.
pub(crate) fn scratch_bytes(gpu: &Gpu, programs: &[Program]) -> u64 {
    let most = most_buffers(gpu);
    programs.iter().map(|program| Lowered::new(program, most).scratch_bytes()).max().unwrap_or(0)
}

/// Runs one step, changing `parameter` and `states`.
///
/// # Errors
/// As the CPU's: [`crate::TensorError::Shape`] when a tensor has not the
/// program's size, or a state not its type. [`crate::TensorError::Shared`] when
/// the parameter shares its storage.
pub(crate) fn step(
    gpu: &Gpu,
    program: &Program,
    parameter: &mut Tensor,
    gradient: &Tensor,
    states: &mut [ProgramState],
    scalars: &Scalars,
) -> Result<()> {
    let n = program.elements();
    if parameter.len() != n || gradient.len() != n {
        return Err(shape_error(OP, n.to_string(), format!("{} and {}", parameter.len(), gradient.len())));
    }
    let states = state::checked(gpu, program, states)?;
    // Refused before any state has changed.
    gpu.output_f32(OP, parameter)?;
    gpu.input_f32(OP, gradient)?;
    let scratch = gpu.kept.of::<Scratch>();
    let mut scratch = scratch.lock().unwrap_or_else(PoisonError::into_inner);
    let lowered = scratch.lowered(program, most_buffers(gpu));
    launch(gpu, program, &lowered, parameter, gradient, states, scalars, &mut scratch.uniforms)
}

#[allow(clippy::too_many_arguments)]
fn launch(
    gpu: &Gpu,
    program: &Program,
    lowered: &Lowered,
    parameter: &mut Tensor,
    gradient: &Tensor,
    states: Vec<&mut GpuState>,
    scalars: &Scalars,
    uniforms: &mut Vec<f64>,
) -> Result<()> {
    program.uniforms(scalars, uniforms);
    let mut table = lowered.head.clone();
    table.extend(lowered.uniforms.iter().map(|id| (uniforms[id.index()] as f32).to_bits()));
    // Tensors of one rule have one table, which is sent once.
    let table = gpu.indices(OP, &table)?;
    let buffers = vec![None; lowered.buffers];
    let mut run = Run { gpu, parameter, gradient, states, buffers, table };
    gpu.guarded(OP, || run.passes(&lowered.passes))?
}
