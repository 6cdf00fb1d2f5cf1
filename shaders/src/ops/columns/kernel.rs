//! One unit an element; sums over rows by blocks of rows, then over the
//! blocks, in an order that depends on the shape alone.

use cubecl::prelude::*;

use super::{check_parts, check_vector, check_widths};
use crate::error::{Result, shape_error};
use crate::gpu::Gpu;
use crate::tensor::Tensor;

#[cube(launch)]
fn add_bias_kernel(y: &mut [f32], bias: &[f32]) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] += bias[ABSOLUTE_POS % bias.len()];
    }
}

#[cube(launch)]
fn scale_columns_kernel(x: &[f32], g: &[f32], y: &mut [f32]) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] = x[ABSOLUTE_POS] * g[ABSOLUTE_POS % g.len()];
    }
}

#[cube(launch)]
fn scale_rows_kernel(y: &mut [f32], factors: &[f32], columns: usize) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] *= factors[ABSOLUTE_POS / columns];
    }
}

/// `to[r, to_first + c] = from[r, from_first + c]` for `width` columns.
#[cube(launch)]
fn copy_columns_kernel(
    from: &[f32],
    to: &mut [f32],
    rows: usize,
    width: usize,
    from_columns: usize,
    from_first: usize,
    to_columns: usize,
    to_first: usize,
) {
    if ABSOLUTE_POS < rows * width {
        let row = ABSOLUTE_POS / width;
        let column = ABSOLUTE_POS % width;
        to[row * to_columns + to_first + column] = from[row * from_columns + from_first + column];
    }
}

/// What [`column_sums`] adds up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Summand {
    /// a.
    Plain,
    /// a · b.
    Product,
    /// a · b · s, with s of the group that the row is.
    ScaledProduct,
    /// a · (b − s₀) · s₁, with `s [rows, 2]`.
    Normalised,
}

/// Rows that one unit adds up.
const BLOCK_ROWS: usize = 64;

/// partial `[blocks, columns]`.
#[cube(launch)]
fn partial_kernel(
    a: &[f32],
    b: &[f32],
    s: &[f32],
    partial: &mut [f32],
    rows: usize,
    columns: usize,
    #[comptime] summand: Summand,
) {
    if ABSOLUTE_POS < partial.len() {
        let block = ABSOLUTE_POS / columns;
        let column = ABSOLUTE_POS % columns;
        let first = block * BLOCK_ROWS;
        let mut sum = 0.0f32;
        for step in 0..BLOCK_ROWS {
            let row = first + step;
            if row < rows {
                let at = row * columns + column;
                match comptime!(summand) {
                    Summand::Plain => sum += a[at],
                    Summand::Product => sum += a[at] * b[at],
                    Summand::ScaledProduct => sum += a[at] * b[at] * s[row],
                    Summand::Normalised => sum += a[at] * (b[at] - s[2 * row]) * s[2 * row + 1],
                }
            }
        }
        partial[ABSOLUTE_POS] = sum;
    }
}

#[cube(launch)]
fn gather_partials_kernel(partial: &[f32], out: &mut [f32], blocks: usize) {
    let columns = out.len();
    if ABSOLUTE_POS < columns {
        let mut sum = 0.0f32;
        for block in 0..blocks {
            sum += partial[block * columns + ABSOLUTE_POS];
        }
        out[ABSOLUTE_POS] += sum;
    }
}

/// out `[columns]` += sums over the rows of matrices of `columns` columns.
/// Where a summand has no b or s, any tensor stands in.
pub(crate) fn column_sums(
    gpu: &Gpu,
    op: &'static str,
    summand: Summand,
    operands: [&Tensor; 3],
    columns: usize,
    out: &mut Tensor,
) -> Result<()> {
    let [a, b, s] = operands;
    if out.len() != columns {
        return Err(shape_error(op, format!("{columns} sums"), format!("{:?}", out.shape())));
    }
    let rows = a.len().checked_div(columns).unwrap_or(0);
    if rows == 0 {
        return Ok(());
    }
    let mut blocks = rows.div_ceil(BLOCK_ROWS);
    let mut partial = gpu.empty_f32(op, &[blocks, columns])?;
    let (count, dim) = gpu.elementwise(partial.len());
    partial_kernel::launch(
        gpu.client(),
        count,
        dim,
        gpu.input_f32(op, a)?,
        gpu.input_f32(op, b)?,
        gpu.input_f32(op, s)?,
        gpu.output_f32(op, &mut partial)?,
        rows,
        columns,
        summand,
    );
    // Many blocks are added up by blocks again.
    while blocks > BLOCK_ROWS {
        let fewer = blocks.div_ceil(BLOCK_ROWS);
        let mut next = gpu.empty_f32(op, &[fewer, columns])?;
        let (count, dim) = gpu.elementwise(next.len());
        let input = gpu.input_f32(op, &partial)?;
        partial_kernel::launch(
            gpu.client(),
            count,
            dim,
            input,
            gpu.input_f32(op, b)?,
            gpu.input_f32(op, s)?,
            gpu.output_f32(op, &mut next)?,
            blocks,
            columns,
            Summand::Plain,
        );
        (partial, blocks) = (next, fewer);
    }
    let (count, dim) = gpu.elementwise(columns);
    let partial = gpu.input_f32(op, &partial)?;
    gather_partials_kernel::launch(gpu.client(), count, dim, partial, gpu.output_f32(op, out)?, blocks);
    Ok(())
}

pub(crate) fn add_bias(gpu: &Gpu, y: &mut Tensor, bias: &Tensor) -> Result<()> {
    const OP: &str = "add_bias";
    check_vector(OP, y, bias)?;
    let (bias, words) = (gpu.input_f32(OP, bias)?, y.len());
    let y = gpu.output_f32(OP, y)?;
    if words > 0 {
        let (count, dim) = gpu.elementwise(words);
        add_bias_kernel::launch(gpu.client(), count, dim, y, bias);
    }
    Ok(())
}

pub(crate) fn bias_backward(gpu: &Gpu, dy: &Tensor, dbias: &mut Tensor) -> Result<()> {
    const OP: &str = "bias_backward";
    check_vector(OP, dy, dbias)?;
    column_sums(gpu, OP, Summand::Plain, [dy; 3], dy.columns(), dbias)
}

pub(crate) fn scale_columns(gpu: &Gpu, x: &Tensor, g: &Tensor) -> Result<Tensor> {
    const OP: &str = "scale_columns";
    check_vector(OP, x, g)?;
    let mut y = gpu.empty_f32(OP, x.shape())?;
    if !x.is_empty() {
        let (count, dim) = gpu.elementwise(x.len());
        let (x, g) = (gpu.input_f32(OP, x)?, gpu.input_f32(OP, g)?);
        scale_columns_kernel::launch(gpu.client(), count, dim, x, g, gpu.output_f32(OP, &mut y)?);
    }
    Ok(y)
}

pub(crate) fn scale_rows(gpu: &Gpu, y: &mut Tensor, factors: &[f32]) -> Result<()> {
    const OP: &str = "scale_rows";
    if y.rows() != factors.len() {
        return Err(shape_error(OP, format!("{} factors", y.rows()), factors.len().to_string()));
    }
    let (words, columns) = (y.len(), y.columns());
    let y = gpu.output_f32(OP, y)?;
    if words > 0 {
        let factors = gpu.upload_f32(OP, &[factors.len()], factors)?;
        let (count, dim) = gpu.elementwise(words);
        scale_rows_kernel::launch(gpu.client(), count, dim, y, gpu.input_f32(OP, &factors)?, columns);
    }
    Ok(())
}

pub(crate) fn column_dot(gpu: &Gpu, a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<()> {
    const OP: &str = "column_dot";
    b.expect_shape(OP, a.shape())?;
    check_vector(OP, a, out)?;
    column_sums(gpu, OP, Summand::Product, [a, b, b], a.columns(), out)
}

/// A rectangle of columns: (tensor, the first column that is copied or written).
pub(crate) fn copy_columns(
    gpu: &Gpu,
    op: &'static str,
    (from, from_first): (&Tensor, usize),
    (to, to_first): (&mut Tensor, usize),
    width: usize,
) -> Result<()> {
    let rows = from.rows();
    if rows * width == 0 {
        return Ok(());
    }
    let (count, dim) = gpu.elementwise(rows * width);
    let (from_columns, to_columns) = (from.columns(), to.columns());
    let (from, to) = (gpu.input_f32(op, from)?, gpu.output_f32(op, to)?);
    copy_columns_kernel::launch(
        gpu.client(),
        count,
        dim,
        from,
        to,
        rows,
        width,
        from_columns,
        from_first,
        to_columns,
        to_first,
    );
    Ok(())
}

pub(crate) fn split_columns(gpu: &Gpu, x: &Tensor, widths: &[usize]) -> Result<Vec<Tensor>> {
    const OP: &str = "split_columns";
    check_widths(OP, x, widths)?;
    let mut first = 0;
    let mut parts = Vec::with_capacity(widths.len());
    for width in widths {
        let mut part = gpu.empty_f32(OP, &[x.rows(), *width])?;
        copy_columns(gpu, OP, (x, first), (&mut part, 0), *width)?;
        parts.push(part);
        first += width;
    }
    Ok(parts)
}

pub(crate) fn join_columns(gpu: &Gpu, parts: &[&Tensor]) -> Result<Tensor> {
    const OP: &str = "join_columns";
    let (rows, columns) = check_parts(OP, parts)?;
    let mut y = gpu.empty_f32(OP, &[rows, columns])?;
    let mut first = 0;
    for part in parts {
        copy_columns(gpu, OP, (part, 0), (&mut y, first), part.columns())?;
        first += part.columns();
    }
    Ok(y)
}
