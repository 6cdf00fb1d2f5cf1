use crate::error::{Result, TensorError};
use crate::gpu::Gpu;
use crate::ops::{AttentionSpec, Segments};
use crate::tensor::Tensor;

pub(crate) fn forward(_: &Gpu, _: &Tensor, _: &Tensor, _: &Tensor, _: &Segments, _: &AttentionSpec) -> Result<(Tensor, Tensor)> {
    Err(TensorError::Failed { op: "attention", reason: "not yet".into() })
}
#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(_: &Gpu, _: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor, _: &Segments, _: &AttentionSpec) -> Result<(Tensor, Tensor, Tensor)> {
    Err(TensorError::Failed { op: "attention_backward", reason: "not yet".into() })
}
pub(crate) fn cached(_: &Gpu, _: &Tensor, _: &Tensor, _: &Tensor, _: usize, _: &AttentionSpec) -> Result<Tensor> {
    Err(TensorError::Failed { op: "attention_cached", reason: "not yet".into() })
}
