//! Linear layers over weights `[out, in]` in any type: `y = x Wᵀ`,
//! `dx = dy W`, `dW = dyᵀ x`.
//!
//! A weight that is not f32 is unpacked a slab of rows at a time: the whole
//! weight in f32 never exists.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;
#[cfg(all(test, feature = "gpu"))]
mod tests_gpu;

use super::{
    Device, Operation, Weight,
    device::{Backend, Counting},
    matmul::count_product,
};
use crate::error::{Result, shape_error};
#[cfg(feature = "gpu")]
use crate::gpu::TensorCores;
use crate::ledger::Counted;
use crate::tensor::{DType, Tensor};

/// The values of a weight that is not kept in f32, for the length of a product.
pub(crate) fn count_unpacked(count: &Counting, w: &Weight) -> Result<Option<Counted>> {
    let (outputs, inputs) = weight_shape("unpack", w)?;
    let dense = matches!(w, Weight::Dense(tensor) if tensor.dtype() == DType::F32);
    Ok((!dense).then(|| count.scratch(count.like.unpacked_bytes(outputs, inputs))))
}

impl Device {
    /// The weight's values as f32 `[out, in]`, dequantised.
    pub fn read_weight(&self, w: &Weight) -> Result<Vec<f32>> {
        self.timed(Operation::ReadWeight, || match self.backend() {
            Backend::Cpu(cpu) => cpu::read(cpu, w),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::read(gpu, w),
            Backend::Counting(_) => Ok(Vec::new()),
        })
    }

    /// Bytes of f32 values that exist at a time of a weight `[out, in]` that is
    /// kept in another type.
    pub(crate) fn unpacked_bytes(&self, outputs: usize, inputs: usize) -> u64 {
        match self.backend() {
            Backend::Cpu(_) => cpu::slab_bytes(outputs, inputs),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => {
                let element = gpu.facts().tensor_cores.map_or(DType::F32, TensorCores::dtype).bytes();
                (element * (outputs * inputs).min(gpu.panel_elements())) as u64
            }
            Backend::Counting(count) => count.like.unpacked_bytes(outputs, inputs),
        }
    }

    /// x Wᵀ `[N, out]`.
    pub fn linear(&self, x: &Tensor, w: &Weight) -> Result<Tensor> {
        self.timed(Operation::Linear, || match self.backend() {
            Backend::Cpu(cpu) => cpu::forward(cpu, x, w),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::forward(gpu, "linear", x, w),
            Backend::Counting(count) => {
                let (outputs, inputs) = weight_shape("linear", w)?;
                count.own("linear", x)?;
                check_columns("linear", x, inputs)?;
                let _unpacked = count_unpacked(count, w)?;
                count_product(count, "linear", (x.rows(), inputs, outputs), None)
            }
        })
    }

    /// dy W `[N, in]`, added to `into`.
    pub fn linear_backward(&self, dy: &Tensor, w: &Weight, into: Option<Tensor>) -> Result<Tensor> {
        self.timed(Operation::LinearBackward, || match self.backend() {
            Backend::Cpu(cpu) => cpu::backward(cpu, dy, w, into),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::backward(gpu, "linear_backward", dy, w, into),
            Backend::Counting(count) => {
                let (outputs, inputs) = weight_shape("linear_backward", w)?;
                check_columns("linear_backward", dy, outputs)?;
                let _unpacked = count_unpacked(count, w)?;
                count_product(count, "linear_backward", (dy.rows(), outputs, inputs), into)
            }
        })
    }

    /// dw `[out, in]` += dyᵀ x.
    pub fn linear_weight_backward(&self, dy: &Tensor, x: &Tensor, dw: &mut Tensor) -> Result<()> {
        self.timed(Operation::LinearWeightBackward, || match self.backend() {
            Backend::Cpu(cpu) => cpu::weight_backward(cpu, dy, x, dw),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::weight_backward(gpu, dy, x, dw),
            Backend::Counting(count) => {
                const OP: &str = "linear_weight_backward";
                let (m, n) = (dy.columns(), x.columns());
                dw.expect_shape(OP, &[m, n])?;
                // The result is added to `dw`, by itself if the device adds afterwards.
                let apart = count.like.adds_apart();
                let _result = count_product(count, OP, (m, dy.rows(), n), (!apart).then(|| dw.clone()))?;
                Ok(())
            }
        })
    }

    /// Euclidean norm of each row of `W + scale · B A`, `[out]`, without the
    /// whole sum in memory (DoRA). a `[R, in]`, b `[out, R]`.
    pub fn dora_norm(&self, w: &Weight, a: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor> {
        self.timed(Operation::DoraNorm, || match self.backend() {
            Backend::Cpu(cpu) => cpu::dora_norm(cpu, w, a, b, scale),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::dora_norm(gpu, w, a, b, scale),
            Backend::Counting(count) => {
                let (outputs, inputs) = weight_shape("dora_norm", w)?;
                let _unpacked = count.scratch(count.like.unpacked_bytes(outputs, inputs));
                count.add_flops(2.0 * a.rows() as f64 * outputs as f64 * inputs as f64);
                b.expect_shape("dora_norm", &[outputs, a.rows()])?;
                count.f32("dora_norm", &[outputs])
            }
        })
    }
}

impl Weight {
    /// `[out, in]`.
    pub fn shape(&self) -> &[usize] {
        match self {
            Weight::Dense(tensor) => tensor.shape(),
            Weight::Nf4(weight) => weight.shape(),
        }
    }

    /// Bytes of storage.
    pub fn bytes(&self) -> usize {
        match self {
            Weight::Dense(tensor) => tensor.bytes(),
            Weight::Nf4(weight) => weight.bytes(),
        }
    }
}

/// (out, in) of a weight.
pub(crate) fn weight_shape(op: &'static str, w: &Weight) -> Result<(usize, usize)> {
    match *w.shape() {
        [rows, columns] => Ok((rows, columns)),
        ref other => Err(shape_error(op, "a weight [out, in]", format!("{other:?}"))),
    }
}

/// The columns of x must be `expected`.
pub(crate) fn check_columns(op: &'static str, x: &Tensor, expected: usize) -> Result<()> {
    if x.columns() != expected {
        return Err(shape_error(op, format!("{expected} columns"), format!("{:?}", x.shape())));
    }
    Ok(())
}

/// dw `[out, in]` of as many rows of dy as of x.
pub(crate) fn check_weight_backward(op: &'static str, dy: &Tensor, x: &Tensor, dw: &Tensor) -> Result<()> {
    if x.rows() != dy.rows() {
        return Err(shape_error(op, format!("{} rows of x", dy.rows()), format!("{:?}", x.shape())));
    }
    dw.expect_shape(op, &[dy.columns(), x.columns()])
}
