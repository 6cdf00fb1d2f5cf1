//! States in device memory.

use finetuned_plugin_api::program::{BLOCK, Initial, Program, State, StateBuffer, StateType, codes};

use crate::error::{Result, TensorError, shape_error};
use crate::gpu::Gpu;
use crate::ops::elementwise;
use crate::ops::program::{OP, ProgramState, StateStorage};
use crate::tensor::{DType, Tensor};

/// A state on the GPU.
///
/// Of f32, a tensor of them. Of 8 bits, one tensor of words, so that a kernel
/// binds one buffer: the codes, four a word in little-endian order, then the
/// bits of the scales.
#[derive(Debug)]
pub(crate) struct GpuState {
    pub(super) kind: StateType,
    pub(super) elements: usize,
    pub(super) tensor: Tensor,
}

impl GpuState {
    /// Whether it is memory for that state.
    pub(super) fn fits(&self, state: &State) -> bool {
        self.kind == state.kind && self.elements == state.elements()
    }
}

/// Words of an 8-bit state's codes.
fn code_words(elements: usize) -> usize {
    elements.div_ceil(4)
}

/// A program's states as before the first step.
pub(crate) fn states(gpu: &Gpu, program: &Program, parameter: &Tensor) -> Result<Vec<ProgramState>> {
    const OP: &str = "program_states";
    if parameter.len() != program.elements() {
        return Err(shape_error(OP, program.elements().to_string(), parameter.len().to_string()));
    }
    parameter.expect_type(OP, DType::F32)?;
    program.states().iter().map(|state| initial(gpu, OP, state, parameter)).collect()
}

fn initial(gpu: &Gpu, op: &'static str, state: &State, parameter: &Tensor) -> Result<ProgramState> {
    let elements = state.elements();
    match (state.kind, state.initial) {
        (StateType::F32, initial) => {
            let mut tensor = gpu.empty_f32(op, &[elements])?;
            match initial {
                Initial::Constant(value) => elementwise::kernel::fill(gpu, op, &mut tensor, value)?,
                Initial::Parameter => elementwise::kernel::copy(gpu, op, parameter, &mut tensor)?,
            }
            Ok(ProgramState(StateStorage::Gpu(GpuState { kind: state.kind, elements, tensor })))
        }
        (StateType::BlockwiseU8 { signed }, Initial::Constant(value)) => {
            // All blocks are alike, so that one tells them all.
            let mut code = [0];
            let scale = codes::quantize(&[value], &mut code, signed);
            let scales = vec![scale; elements.div_ceil(BLOCK)];
            write_state(gpu, StateBuffer::BlockwiseU8 { codes: vec![code[0]; elements], scales, signed })
        }
        (StateType::BlockwiseU8 { .. }, Initial::Parameter) => {
            write_state(gpu, StateBuffer::new(state, &gpu.read_f32(op, parameter)?))
        }
    }
}

pub(crate) fn write_state(gpu: &Gpu, buffer: StateBuffer) -> Result<ProgramState> {
    const OP: &str = "write_state";
    let state = match buffer {
        StateBuffer::F32(values) => {
            let tensor = gpu.upload_f32(OP, &[values.len()], &values)?;
            GpuState { kind: StateType::F32, elements: values.len(), tensor }
        }
        StateBuffer::BlockwiseU8 { codes, scales, signed } => {
            let elements = codes.len();
            if scales.len() != elements.div_ceil(BLOCK) {
                let expected = format!("{} scales for {elements} codes", elements.div_ceil(BLOCK));
                return Err(shape_error(OP, expected, scales.len().to_string()));
            }
            let mut bytes = codes;
            bytes.resize(4 * code_words(elements), 0);
            scales.iter().for_each(|scale| bytes.extend(scale.to_bits().to_le_bytes()));
            let tensor = gpu.upload_bytes(OP, &[bytes.len() / 4], DType::U32, &bytes)?;
            GpuState { kind: StateType::BlockwiseU8 { signed }, elements, tensor }
        }
    };
    Ok(ProgramState(StateStorage::Gpu(state)))
}

pub(crate) fn read_state(gpu: &Gpu, state: &ProgramState) -> Result<StateBuffer> {
    const OP: &str = "read_state";
    let StateStorage::Gpu(state) = &state.0 else { return Err(on_host(gpu, OP)) };
    match state.kind {
        StateType::F32 => Ok(StateBuffer::F32(gpu.read_f32(OP, &state.tensor)?)),
        StateType::BlockwiseU8 { signed } => {
            let mut codes = gpu.read_bytes(OP, &state.tensor)?;
            let scales = codes.split_off(4 * code_words(state.elements));
            codes.truncate(state.elements);
            let scales = scales.as_chunks::<4>().0.iter().map(|bits| f32::from_bits(u32::from_le_bytes(*bits)));
            Ok(StateBuffer::BlockwiseU8 { codes, scales: scales.collect(), signed })
        }
    }
}

fn on_host(gpu: &Gpu, op: &'static str) -> TensorError {
    TensorError::Device { op, expected: gpu.facts().name.clone(), got: "cpu".into() }
}

/// A step's states, each found to be the program's.
pub(super) fn checked<'a>(
    gpu: &Gpu,
    program: &Program,
    states: &'a mut [ProgramState],
) -> Result<Vec<&'a mut GpuState>> {
    if states.len() != program.states().len() {
        return Err(shape_error(OP, format!("{} states", program.states().len()), states.len().to_string()));
    }
    let mut found = Vec::with_capacity(states.len());
    for (index, (state, expected)) in states.iter_mut().zip(program.states()).enumerate() {
        let StateStorage::Gpu(state) = &mut state.0 else { return Err(on_host(gpu, OP)) };
        if !state.fits(expected) {
            return Err(shape_error(
                OP,
                format!("{expected:?}"),
                format!("state {index} of {} elements", state.elements),
            ));
        }
        found.push(state);
    }
    Ok(found)
}
