//! Operations between a matrix `[N, C]` and a vector `[C]` of its columns, and
//! cutting and joining columns.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;

use super::{Device, Operation, device::Backend};
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;

impl Device {
    /// Multiplies each row of an f32 matrix `[M, C]` by its factor. Through the
    /// host if a device has nothing better.
    ///
    /// # Errors
    /// [`TensorError::Shape`](crate::TensorError::Shape) if there is not one
    /// factor a row.
    pub fn scale_rows(&self, y: &mut Tensor, factors: &[f32]) -> Result<()> {
        self.timed(Operation::ScaleRows, || match self.backend() {
            Backend::Cpu(cpu) => {
                if y.rows() != factors.len() {
                    return Err(shape_error("scale_rows", format!("{} factors", y.rows()), factors.len().to_string()));
                }
                let mut values = cpu.read_values(y)?;
                let columns = (values.len() / factors.len().max(1)).max(1);
                for (row, factor) in values.chunks_mut(columns).zip(factors) {
                    row.iter_mut().for_each(|x| *x *= factor);
                }
                cpu.write_values(y, &values)
            }
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::scale_rows(gpu, y, factors),
            Backend::Counting(_) => {
                if y.rows() == factors.len() {
                    return Ok(());
                }
                Err(shape_error("scale_rows", format!("{} factors", y.rows()), factors.len().to_string()))
            }
        })
    }

    /// Adds `bias [C]` to each row.
    pub fn add_bias(&self, y: &mut Tensor, bias: &Tensor) -> Result<()> {
        self.timed(Operation::AddBias, || match self.backend() {
            Backend::Cpu(cpu) => cpu::add_bias(cpu, y, bias),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::add_bias(gpu, y, bias),
            Backend::Counting(_) => bias.expect_shape("add_bias", &[y.columns()]),
        })
    }

    /// dbias += column sums of dy.
    pub fn bias_backward(&self, dy: &Tensor, dbias: &mut Tensor) -> Result<()> {
        self.timed(Operation::BiasBackward, || match self.backend() {
            Backend::Cpu(cpu) => cpu::bias_backward(cpu, dy, dbias),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::bias_backward(gpu, dy, dbias),
            Backend::Counting(_) => dbias.expect_shape("bias_backward", &[dy.columns()]),
        })
    }

    /// x·g with `g [C]` over the columns, in new storage (DoRA's magnitude).
    pub fn scale_columns(&self, x: &Tensor, g: &Tensor) -> Result<Tensor> {
        self.timed(Operation::ScaleColumns, || match self.backend() {
            Backend::Cpu(cpu) => cpu::scale_columns(cpu, x, g),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::scale_columns(gpu, x, g),
            Backend::Counting(count) => {
                g.expect_shape("scale_columns", &[x.columns()])?;
                count.f32("scale_columns", x.shape())
            }
        })
    }

    /// out [C] += Σ over rows of a ⊙ b (the gradient of a column scale).
    pub fn column_dot(&self, a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<()> {
        self.timed(Operation::ColumnDot, || match self.backend() {
            Backend::Cpu(cpu) => cpu::column_dot(cpu, a, b, out),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::column_dot(gpu, a, b, out),
            Backend::Counting(_) => {
                b.expect_shape("column_dot", a.shape())?;
                out.expect_shape("column_dot", &[a.columns()])
            }
        })
    }

    /// Cuts the columns of x `[N, ΣC]` into tensors of these widths.
    pub fn split_columns(&self, x: &Tensor, widths: &[usize]) -> Result<Vec<Tensor>> {
        self.timed(Operation::SplitColumns, || match self.backend() {
            Backend::Cpu(cpu) => cpu::split_columns(cpu, x, widths),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::split_columns(gpu, x, widths),
            Backend::Counting(count) => {
                x.expect_shape("split_columns", &[x.rows(), widths.iter().sum()])?;
                widths.iter().map(|width| count.f32("split_columns", &[x.rows(), *width])).collect()
            }
        })
    }

    /// The reverse of [`Device::split_columns`].
    pub fn join_columns(&self, parts: &[&Tensor]) -> Result<Tensor> {
        self.timed(Operation::JoinColumns, || match self.backend() {
            Backend::Cpu(cpu) => cpu::join_columns(cpu, parts),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => kernel::join_columns(gpu, parts),
            Backend::Counting(count) => {
                let rows = parts.first().map_or(0, |part| part.rows());
                count.f32("join_columns", &[rows, parts.iter().map(|part| part.columns()).sum()])
            }
        })
    }
}

/// The vector must have one element per column of the matrix.
pub(crate) fn check_vector(op: &'static str, x: &Tensor, vector: &Tensor) -> Result<()> {
    if vector.len() != x.columns() {
        return Err(shape_error(op, format!("a vector of {} columns", x.columns()), format!("{:?}", vector.shape())));
    }
    Ok(())
}

/// The widths must add up to the columns of `x`.
pub(crate) fn check_widths(op: &'static str, x: &Tensor, widths: &[usize]) -> Result<()> {
    let total: usize = widths.iter().sum();
    if total != x.columns() || widths.contains(&0) {
        return Err(shape_error(op, format!("widths that add up to {}", x.columns()), format!("{widths:?}")));
    }
    Ok(())
}

/// The parts must have the same number of rows; gives that number and the
/// total width.
pub(crate) fn check_parts(op: &'static str, parts: &[&Tensor]) -> Result<(usize, usize)> {
    let rows = parts.first().map_or(0, |part| part.rows());
    if let Some(part) = parts.iter().find(|part| part.rows() != rows) {
        return Err(shape_error(op, format!("parts of {rows} rows"), format!("{:?}", part.shape())));
    }
    Ok((rows, parts.iter().map(|part| part.columns()).sum()))
}
