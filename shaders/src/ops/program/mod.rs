//! Optimizer programs: a step of an optimizer over one parameter, and its states.
//!
//! A [`Program`] is `finetuned_plugin_api::program`'s, whose `interpret` is the definition.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
mod plan;
#[cfg(test)]
mod tests;

use finetuned_plugin_api::program::{Program, Scalars, StateBuffer};

use super::{Device, Operation, device::Backend};
use crate::error::{Result, shape_error};
use crate::ledger::Counted;
use crate::tensor::Tensor;

/// Plans beyond this number push out the oldest: a model has a few shapes.
const MOST_PLANS: usize = 256;

const OP: &str = "optimizer_step";

/// An optimizer's state on its device. The types of the elements are the
/// program's affair.
#[derive(Debug)]
pub struct ProgramState(pub(crate) StateStorage);

#[derive(Debug)]
pub(crate) enum StateStorage {
    Host(StateBuffer),
    /// Only the bytes are known.
    Counted(Counted),
    #[cfg(feature = "gpu")]
    Gpu(kernel::GpuState),
}

impl Device {
    /// The states of a program on this device, as before the first step.
    pub fn program_states(&self, program: &Program, parameter: &Tensor) -> Result<Vec<ProgramState>> {
        self.timed(Operation::ProgramStates, || match self.backend() {
            Backend::Cpu(cpu) => {
                let parameter = cpu.f32("program_states", parameter)?;
                if parameter.len() != program.elements() {
                    return Err(shape_error(
                        "program_states",
                        format!("{} elements", program.elements()),
                        parameter.len().to_string(),
                    ));
                }
                let state = |state| ProgramState(StateStorage::Host(StateBuffer::new(state, parameter)));
                Ok(program.states().iter().map(state).collect())
            }
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::states(gpu, program, parameter),
            Backend::Counting(count) => {
                if parameter.len() != program.elements() {
                    let expected = format!("{} elements", program.elements());
                    return Err(shape_error("program_states", expected, parameter.len().to_string()));
                }
                let state =
                    |bytes: usize| ProgramState(StateStorage::Counted(Counted::new(bytes as u64, &count.ledger)));
                Ok(program.states().iter().map(|described| state(described.bytes())).collect())
            }
        })
    }

    /// A state's memory, for a checkpoint; and back.
    pub fn read_state(&self, state: &ProgramState) -> Result<StateBuffer> {
        self.timed(Operation::ReadState, || match self.backend() {
            Backend::Cpu(_) => match &state.0 {
                StateStorage::Host(buffer) => Ok(buffer.clone()),
                _ => Err(crate::cpu::elsewhere("read_state")),
            },
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::read_state(gpu, state),
            Backend::Counting(_) => Ok(StateBuffer::F32(Vec::new())),
        })
    }

    pub fn write_state(&self, buffer: StateBuffer) -> Result<ProgramState> {
        self.timed(Operation::WriteState, || match self.backend() {
            Backend::Cpu(_) => Ok(ProgramState(StateStorage::Host(buffer))),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::write_state(gpu, buffer),
            Backend::Counting(count) => {
                let bytes = match &buffer {
                    StateBuffer::F32(values) => 4 * values.len(),
                    StateBuffer::BlockwiseU8 { codes, scales, .. } => codes.len() + 4 * scales.len(),
                };
                Ok(ProgramState(StateStorage::Counted(Counted::new(bytes as u64, &count.ledger))))
            }
        })
    }

    /// Bytes of temporaries that steps of these programs keep, all of which share
    /// them; 0 if the device keeps none.
    pub fn program_scratch_bytes(&self, programs: &[Program]) -> u64 {
        match self.backend() {
            Backend::Cpu(_) => cpu::scratch_bytes(programs),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::scratch_bytes(gpu, programs),
            Backend::Counting(count) => count.like.program_scratch_bytes(programs),
        }
    }

    /// Runs an optimizer's program over one parameter tensor.
    pub fn optimizer_step(
        &self,
        program: &Program,
        parameter: &mut Tensor,
        gradient: &Tensor,
        states: &mut [ProgramState],
        scalars: &Scalars,
    ) -> Result<()> {
        self.timed(Operation::OptimizerStep, || match self.backend() {
            Backend::Cpu(cpu) => {
                const OP: &str = "optimizer_step";
                let gradient = cpu.f32(OP, gradient)?;
                let parameter = cpu.f32_mut(OP, parameter)?;
                let mut slices = Vec::with_capacity(states.len());
                for state in states {
                    match &mut state.0 {
                        StateStorage::Host(buffer) => slices.push(buffer.slice()),
                        _ => return Err(crate::cpu::elsewhere(OP)),
                    }
                }
                let mut scratch = cpu.program.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                cpu::run(&cpu.workers, program, parameter, gradient, slices, scalars, &mut scratch)
            }
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::step(gpu, program, parameter, gradient, states, scalars),
            Backend::Counting(count) => {
                gradient.expect_shape("optimizer_step", parameter.shape())?;
                if !states.iter().all(|state| matches!(&state.0, StateStorage::Counted(counted) if count.owns(counted)))
                {
                    return Err(count.elsewhere("optimizer_step"));
                }
                let _scratch = count.scratch(count.like.program_scratch_bytes(std::slice::from_ref(program)));
                Ok(())
            }
        })
    }
}
