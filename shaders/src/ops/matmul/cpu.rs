//! Through the `gemm` crate.

use super::check;
use crate::cpu::Cpu;
use crate::cpu::gemm::{Matrix, MatrixMut, Output, gemm_parallel};
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn matmul(
    cpu: &Cpu,
    a: &Tensor,
    transpose_a: bool,
    b: &Tensor,
    transpose_b: bool,
    alpha: f32,
    into: Option<Tensor>,
) -> Result<Tensor> {
    const OP: &str = "matmul";
    let (rows, _, columns) = check(a, transpose_a, b, transpose_b)?;
    let (mut c, output) = target(cpu, OP, &[rows, columns], into)?;
    let view = |x: &'_ Tensor, values, transpose| {
        let matrix = Matrix::new(values, x.rows(), x.columns());
        if transpose { matrix.t() } else { matrix }
    };
    let a = view(a, cpu.f32(OP, a)?, transpose_a);
    let b = view(b, cpu.f32(OP, b)?, transpose_b);
    gemm_parallel(&cpu.workers, alpha, a, b, output, MatrixMut::new(cpu.f32_mut(OP, &mut c)?, rows, columns));
    Ok(c)
}

/// The tensor that a product writes: the accumulator to add to, or a new one.
pub(crate) fn target(cpu: &Cpu, op: &'static str, shape: &[usize], into: Option<Tensor>) -> Result<(Tensor, Output)> {
    match into {
        Some(into) => Ok((cpu.accumulator(op, shape, Some(into))?, Output::Add)),
        None => Ok((cpu.empty_f32(op, shape)?, Output::Overwrite)),
    }
}
