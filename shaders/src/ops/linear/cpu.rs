//! Products with a dense f32 weight go straight to the matrix product; other
//! weights are unpacked slab by slab into a scratch tensor.

use std::ops::Range;

use super::{check_columns, check_weight_backward, weight_shape};
use crate::cpu::gemm::{Matrix, MatrixMut, Output, gemm, gemm_parallel};
use crate::cpu::{Cpu, simd};
use crate::error::{Result, TensorError};
use crate::ops::Weight;
use crate::ops::matmul::cpu::target;
use crate::ops::nf4;
use crate::tensor::{DType, Tensor};

/// Elements of a slab: 2 MiB of f32, so that what was just unpacked is still
/// in a cache when it is multiplied.
const SLAB: usize = 1 << 19;

/// A weight's values, readable by rows.
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [half::bf16]),
    Nf4(nf4::cpu::View<'a>),
}

impl<'a> Values<'a> {
    pub(crate) fn new(cpu: &Cpu, op: &'static str, w: &'a Weight) -> Result<Values<'a>> {
        match w {
            Weight::Dense(tensor) if tensor.dtype() == DType::Bf16 => Ok(Values::Bf16(cpu.bf16(op, tensor)?)),
            Weight::Dense(tensor) => Ok(Values::F32(cpu.f32(op, tensor)?)),
            Weight::Nf4(weight) => Ok(Values::Nf4(nf4::cpu::View::new(cpu, op, weight)?)),
        }
    }

    /// Writes elements `range` of the flattened weight as f32.
    pub(crate) fn unpack(&self, range: Range<usize>, out: &mut [f32]) {
        match self {
            Values::F32(x) => out.copy_from_slice(&x[range]),
            Values::Bf16(x) => simd::dispatch(
                #[inline(always)]
                || {
                    for (y, x) in out.iter_mut().zip(&x[range]) {
                        *y = f32::from_bits(u32::from(x.to_bits()) << 16);
                    }
                },
            ),
            Values::Nf4(view) => view.unpack(range, out),
        }
    }
}

/// Rows of a slab.
fn slab_rows(rows: usize, columns: usize) -> usize {
    // A multiple of a tile's columns, if it is that large.
    let most = SLAB / columns.max(1);
    (if most > 192 { most / 192 * 192 } else { most }).clamp(1, rows.max(1))
}

/// Bytes of a slab of a weight `[rows, columns]`.
pub(crate) fn slab_bytes(rows: usize, columns: usize) -> u64 {
    4 * (slab_rows(rows, columns) * columns) as u64
}

/// Calls `work` with each slab of rows of a weight that is not f32.
fn each_slab(
    cpu: &Cpu,
    op: &'static str,
    values: &Values,
    shape: (usize, usize),
    mut work: impl FnMut(Range<usize>, &[f32]),
) -> Result<()> {
    let (rows, columns) = shape;
    let slab_rows = slab_rows(rows, columns);
    let mut scratch = cpu.empty_f32(op, &[slab_rows, columns])?;
    for from in (0..rows).step_by(slab_rows) {
        let to = (from + slab_rows).min(rows);
        let slab = &mut cpu.f32_mut(op, &mut scratch)?[..(to - from) * columns];
        let piece = (slab_rows.div_ceil(16) * columns).max(1);
        cpu.workers.each(slab.chunks_mut(piece).enumerate(), |(index, out)| {
            let start = from * columns + index * piece;
            values.unpack(start..start + out.len(), out);
        });
        work(from..to, slab);
    }
    Ok(())
}

/// y = x Wᵀ into rows that the caller owns.
pub(crate) fn forward_into(cpu: &Cpu, op: &'static str, x: &[f32], n: usize, w: &Weight, y: &mut [f32]) -> Result<()> {
    let (outputs, inputs) = weight_shape(op, w)?;
    let x = Matrix::new(x, n, inputs);
    match Values::new(cpu, op, w)? {
        Values::F32(w) => {
            let w = Matrix::new(w, outputs, inputs).t();
            gemm_parallel(&cpu.workers, 1.0, x, w, Output::Overwrite, MatrixMut::new(y, n, outputs));
            Ok(())
        }
        values => each_slab(cpu, op, &values, (outputs, inputs), |rows, slab| {
            let w = Matrix::new(slab, rows.len(), inputs).t();
            let y = MatrixMut::strided(&mut y[rows.start..], n, rows.len(), outputs);
            gemm_parallel(&cpu.workers, 1.0, x, w, Output::Overwrite, y);
        }),
    }
}

/// dx (+)= dy W into rows that the caller owns.
pub(crate) fn backward_into(
    cpu: &Cpu,
    op: &'static str,
    dy: &[f32],
    n: usize,
    w: &Weight,
    output: Output,
    dx: &mut [f32],
) -> Result<()> {
    let (outputs, inputs) = weight_shape(op, w)?;
    match Values::new(cpu, op, w)? {
        Values::F32(w) => {
            let (dy, w) = (Matrix::new(dy, n, outputs), Matrix::new(w, outputs, inputs));
            gemm_parallel(&cpu.workers, 1.0, dy, w, output, MatrixMut::new(dx, n, inputs));
            Ok(())
        }
        values => each_slab(cpu, op, &values, (outputs, inputs), |rows, slab| {
            let output = if rows.start == 0 { output } else { Output::Add };
            let dy = Matrix::strided(&dy[rows.start.min(dy.len())..], n, rows.len(), outputs);
            let w = Matrix::new(slab, rows.len(), inputs);
            gemm_parallel(&cpu.workers, 1.0, dy, w, output, MatrixMut::new(dx, n, inputs));
        }),
    }
}

pub(crate) fn forward(cpu: &Cpu, x: &Tensor, w: &Weight) -> Result<Tensor> {
    const OP: &str = "linear";
    let (outputs, inputs) = weight_shape(OP, w)?;
    check_columns(OP, x, inputs)?;
    let n = x.rows();
    let mut y = cpu.empty_f32(OP, &[n, outputs])?;
    forward_into(cpu, OP, cpu.f32(OP, x)?, n, w, cpu.f32_mut(OP, &mut y)?)?;
    Ok(y)
}

pub(crate) fn backward(cpu: &Cpu, dy: &Tensor, w: &Weight, into: Option<Tensor>) -> Result<Tensor> {
    const OP: &str = "linear_backward";
    let (outputs, inputs) = weight_shape(OP, w)?;
    check_columns(OP, dy, outputs)?;
    let n = dy.rows();
    let (mut dx, output) = target(cpu, OP, &[n, inputs], into)?;
    backward_into(cpu, OP, cpu.f32(OP, dy)?, n, w, output, cpu.f32_mut(OP, &mut dx)?)?;
    Ok(dx)
}

pub(crate) fn weight_backward(cpu: &Cpu, dy: &Tensor, x: &Tensor, dw: &mut Tensor) -> Result<()> {
    const OP: &str = "linear_weight_backward";
    let (n, outputs, inputs) = (dy.rows(), dy.columns(), x.columns());
    check_weight_backward(OP, dy, x, dw)?;
    let dy = Matrix::new(cpu.f32(OP, dy)?, n, outputs).t();
    let x = Matrix::new(cpu.f32(OP, x)?, n, inputs);
    let dw = MatrixMut::new(cpu.f32_mut(OP, dw)?, outputs, inputs);
    gemm_parallel(&cpu.workers, 1.0, dy, x, Output::Add, dw);
    Ok(())
}

pub(crate) fn dora_norm(cpu: &Cpu, w: &Weight, a: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor> {
    const OP: &str = "dora_norm";
    let (outputs, inputs) = weight_shape(OP, w)?;
    let rank = a.rows();
    a.expect_shape(OP, &[rank, inputs])?;
    b.expect_shape(OP, &[outputs, rank])?;
    let values = Values::new(cpu, OP, w)?;
    let (a, b) = (cpu.f32(OP, a)?, cpu.f32(OP, b)?);
    let mut norms = cpu.empty_f32(OP, &[outputs])?;
    let block = (SLAB / 8 / inputs.max(1)).max(1);
    cpu.workers.each(cpu.f32_mut(OP, &mut norms)?.chunks_mut(block).enumerate(), |(index, norms)| {
        let (from, rows) = (index * block, norms.len());
        let mut sum = vec![0.0f32; rows * inputs];
        values.unpack(from * inputs..(from + rows) * inputs, &mut sum);
        let b = Matrix::new(&b[from * rank..], rows, rank);
        gemm(scale, b, Matrix::new(a, rank, inputs), Output::Add, &mut MatrixMut::new(&mut sum, rows, inputs));
        for (norm, row) in norms.iter_mut().zip(sum.chunks_exact(inputs)) {
            *norm = simd::dispatch(
                #[inline(always)]
                || simd::dot(row, row),
            )
            .sqrt();
        }
    });
    Ok(norms)
}

/// The weight's values as f32.
pub(crate) fn read(cpu: &Cpu, w: &Weight) -> Result<Vec<f32>> {
    const OP: &str = "read_weight";
    let (outputs, inputs) = weight_shape(OP, w)?;
    let mut out = Vec::new();
    let bytes = outputs * inputs * 4;
    out.try_reserve_exact(outputs * inputs).map_err(|_| TensorError::Memory { op: OP, bytes, device: "cpu".into() })?;
    out.resize(outputs * inputs, 0.0);
    Values::new(cpu, OP, w)?.unpack(0..outputs * inputs, &mut out);
    Ok(out)
}
