//! Matrix products of tensors: `alpha · op(a) op(b)`.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;

use super::{
    Device, Operation,
    device::{Backend, Counting},
};
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;

/// A product `[m, n]` over `k`, added to `into`.
pub(crate) fn count_product(
    count: &Counting,
    op: &'static str,
    (m, k, n): (usize, usize, usize),
    into: Option<Tensor>,
) -> Result<Tensor> {
    count.add_flops(2.0 * m as f64 * k as f64 * n as f64);
    if !count.like.adds_apart() {
        return count.accumulator(op, &[m, n], into);
    }
    // Both operands rounded to 16 bits, and a result that is added afterwards.
    let _operands = count.scratch(2 * (m * k + k * n) as u64);
    let result = count.f32(op, &[m, n])?;
    match into {
        Some(into) => into.expect_shape(op, &[m, n]).map(|()| into),
        None => Ok(result),
    }
}

impl Device {
    /// Whether a product that is added to a tensor exists by itself before.
    pub(crate) fn adds_apart(&self) -> bool {
        match self.backend() {
            Backend::Cpu(_) => false,
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => {
                // The routine on tensor cores writes and never adds.
                gpu.facts().tensor_cores.is_some()
            }
            Backend::Counting(count) => count.like.adds_apart(),
        }
    }

    /// alpha · op(a) op(b), added to `into`; op transposes if the flag says.
    pub fn matmul(
        &self,
        a: &Tensor,
        transpose_a: bool,
        b: &Tensor,
        transpose_b: bool,
        alpha: f32,
        into: Option<Tensor>,
    ) -> Result<Tensor> {
        self.timed(Operation::Matmul, || match self.backend() {
            Backend::Cpu(cpu) => cpu::matmul(cpu, a, transpose_a, b, transpose_b, alpha, into),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => {
                use kernel::Operand;
                let (a, b) =
                    (Operand { tensor: a, transpose: transpose_a }, Operand { tensor: b, transpose: transpose_b });
                kernel::matmul(gpu, "matmul", a, b, alpha, into)
            }
            Backend::Counting(count) => count_product(count, "matmul", check(a, transpose_a, b, transpose_b)?, into),
        })
    }
}

/// (rows, depth, columns) of the product.
pub(crate) fn check(a: &Tensor, transpose_a: bool, b: &Tensor, transpose_b: bool) -> Result<(usize, usize, usize)> {
    let flip = |x: &Tensor, transpose: bool| {
        if transpose { (x.columns(), x.rows()) } else { (x.rows(), x.columns()) }
    };
    let ((rows, depth), (depth_b, columns)) = (flip(a, transpose_a), flip(b, transpose_b));
    if depth != depth_b {
        return Err(shape_error(
            "matmul",
            format!("the same depth on both sides of {rows}x{depth}"),
            format!("{depth_b}x{columns}"),
        ));
    }
    Ok((rows, depth, columns))
}
