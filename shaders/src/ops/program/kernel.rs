//! Optimizer programs on the GPU.

/// What steps keep from one to the next.
#[derive(Default)]
pub(crate) struct Scratch {}

/// A state on the GPU.
#[derive(Debug)]
pub(crate) struct GpuState {}
use crate::error::{Result, TensorError};
use crate::gpu::Gpu;
use crate::ops::ProgramState;
use crate::tensor::Tensor;
use finetuned_plugin_api::program::{Program, Scalars, StateBuffer};
fn not_yet<T>() -> Result<T> { Err(TensorError::Failed { op: "optimizer_step", reason: "not yet".into() }) }
pub(crate) fn states(_: &Gpu, _: &Program, _: &Tensor) -> Result<Vec<ProgramState>> { not_yet() }
pub(crate) fn read_state(_: &Gpu, _: &ProgramState) -> Result<StateBuffer> { not_yet() }
pub(crate) fn write_state(_: &Gpu, _: StateBuffer) -> Result<ProgramState> { not_yet() }
pub(crate) fn step(_: &Gpu, _: &Program, _: &mut Tensor, _: &Tensor, _: &mut [ProgramState], _: &Scalars) -> Result<()> { not_yet() }
