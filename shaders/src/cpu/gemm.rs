//! Matrix products in f32 through the `gemm` crate, behind bounds-checked
//! views, and how one product is cut over the threads.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use super::workers::Workers;

/// A matrix in a slice: element (i, j) is `data[i · row_stride + j · column_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    start: *const f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
    life: PhantomData<&'a [f32]>,
}

// SAFETY: a `Matrix` is a shared borrow of a slice of f32.
unsafe impl Send for Matrix<'_> {}
// SAFETY: as above.
unsafe impl Sync for Matrix<'_> {}

/// The last index that a matrix of this shape touches must lie in the slice.
fn check(len: usize, rows: usize, columns: usize, row_stride: usize, column_stride: usize) {
    if rows > 0 && columns > 0 {
        let last = (rows - 1) * row_stride + (columns - 1) * column_stride;
        assert!(last < len, "a {rows}x{columns} matrix of strides {row_stride}, {column_stride} in {len} elements");
    }
}

impl<'a> Matrix<'a> {
    /// Row-major, contiguous.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize) -> Matrix<'a> {
        Matrix::strided(data, rows, columns, columns)
    }

    /// Row-major with `row_stride` elements from row to row.
    pub(crate) fn strided(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Matrix<'a> {
        check(data.len(), rows, columns, row_stride, 1);
        Matrix { start: data.as_ptr(), rows, columns, row_stride, column_stride: 1, life: PhantomData }
    }

    /// The transpose: a view, nothing moves.
    pub(crate) fn t(self) -> Matrix<'a> {
        Matrix {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    pub(crate) fn row_range(self, from: usize, count: usize) -> Matrix<'a> {
        assert!(from + count <= self.rows);
        // SAFETY: rows `from..` lie within the slice this view was made of.
        Matrix { start: unsafe { self.start.add(from * self.row_stride) }, rows: count, ..self }
    }

    /// A row of a matrix whose rows are contiguous.
    pub(crate) fn row(self, row: usize) -> &'a [f32] {
        assert!(row < self.rows && self.column_stride == 1);
        // SAFETY: the row lies within the slice that this view was made of.
        unsafe { std::slice::from_raw_parts(self.start.add(row * self.row_stride), self.columns) }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Rows `row..row + rows` of columns `column..column + columns`.
    pub(crate) fn part(self, row: usize, rows: usize, column: usize, columns: usize) -> Matrix<'a> {
        self.row_range(row, rows).column_range(column, columns)
    }

    pub(crate) fn column_range(self, from: usize, count: usize) -> Matrix<'a> {
        self.t().row_range(from, count).t()
    }
}

/// A matrix to write: row-major, `row_stride` elements from row to row.
pub(crate) struct MatrixMut<'a> {
    start: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `MatrixMut` is an exclusive borrow of its elements: pieces made by
// `tiles` share no element.
unsafe impl Send for MatrixMut<'_> {}

impl<'a> MatrixMut<'a> {
    pub(crate) fn new(data: &'a mut [f32], rows: usize, columns: usize) -> MatrixMut<'a> {
        MatrixMut::strided(data, rows, columns, columns)
    }

    pub(crate) fn strided(data: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> MatrixMut<'a> {
        assert!(row_stride >= columns);
        check(data.len(), rows, columns, row_stride, 1);
        MatrixMut { start: data.as_mut_ptr(), rows, columns, row_stride, life: PhantomData }
    }

    /// Cuts the matrix at these row bounds (ascending, from 0 to its rows) and
    /// into columns of this width: the pieces of the first rows come first.
    pub(crate) fn grid(self, bounds: &[usize], width: usize) -> Vec<MatrixMut<'a>> {
        let mut pieces = Vec::new();
        for range in bounds.windows(2) {
            assert!(range[0] < range[1] && range[1] <= self.rows);
            for column in (0..self.columns).step_by(width.max(1)) {
                pieces.push(MatrixMut {
                    // SAFETY: the element lies within this matrix.
                    start: unsafe { self.start.add(range[0] * self.row_stride + column) },
                    rows: range[1] - range[0],
                    columns: width.min(self.columns - column),
                    row_stride: self.row_stride,
                    life: PhantomData,
                });
            }
        }
        pieces
    }

    /// A part of it, for as long as the part is used.
    pub(crate) fn part(&mut self, row: usize, rows: usize, column: usize, columns: usize) -> MatrixMut<'_> {
        assert!(row + rows <= self.rows && column + columns <= self.columns);
        // SAFETY: the part's first element lies within this matrix (or the part
        // is empty and never read).
        let start = unsafe { self.start.add(row * self.row_stride + column) };
        MatrixMut { start, rows, columns, row_stride: self.row_stride, life: PhantomData }
    }

    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows);
        // SAFETY: a row's elements lie side by side within the slice that the
        // view was made of, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.row_stride), self.columns) }
    }

    /// Cuts the matrix into tiles of at most `rows` x `columns`, each with its
    /// place (row, column).
    fn tiles(self, rows: usize, columns: usize) -> Vec<(usize, usize, MatrixMut<'a>)> {
        let mut tiles = Vec::new();
        for column in (0..self.columns).step_by(columns.max(1)) {
            for row in (0..self.rows).step_by(rows.max(1)) {
                let tile = MatrixMut {
                    // SAFETY: (row, column) is an element of this matrix.
                    start: unsafe { self.start.add(row * self.row_stride + column) },
                    rows: rows.min(self.rows - row),
                    columns: columns.min(self.columns - column),
                    row_stride: self.row_stride,
                    life: PhantomData,
                };
                tiles.push((row, column, tile));
            }
        }
        tiles
    }
}

/// What a product does with the values that its output holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// c = alpha · a b; old values are not read.
    Overwrite,
    /// c += alpha · a b.
    Add,
}

/// c = alpha · a b, or c += alpha · a b, on the calling thread.
///
/// Callers have checked the shapes of their tensors; a mismatch here is a slip
/// of this crate and panics.
pub(crate) fn gemm(alpha: f32, a: Matrix, b: Matrix, output: Output, c: &mut MatrixMut) {
    assert!(a.rows == c.rows && b.columns == c.columns && a.columns == b.rows);
    // The routine wants its output's columns contiguous, and a row-major product is the
    // transpose of the product of the transposes: cᵀ = bᵀ aᵀ. A single column is both.
    let (a, b, rows, columns, column_stride, row_stride) = if c.row_stride > 1 {
        (b.t(), a.t(), c.columns, c.rows, c.row_stride, 1)
    } else {
        (a, b, c.rows, c.columns, 1, c.row_stride)
    };
    // SAFETY: the views were checked against their slices when they were made,
    // the shapes agree, and `c` is an exclusive borrow, so it overlaps neither
    // operand.
    unsafe {
        // The crate for f32 itself: the face `gemm` also compiles those for other types.
        gemm_f32::gemm::f32::get_gemm_fn()(
            rows,
            columns,
            a.columns,
            c.start,
            column_stride as isize,
            row_stride as isize,
            output == Output::Add,
            a.start,
            a.column_stride as isize,
            a.row_stride as isize,
            b.start,
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            gemm_common::Parallelism::None,
        );
    }
}

/// As [`gemm()`], cut into tiles of `c` over the threads.
///
/// The tiles follow from the shape alone, so the bits of the result do not
/// depend on how many threads there are.
pub(crate) fn gemm_parallel(workers: &Workers, alpha: f32, a: Matrix, b: Matrix, output: Output, c: MatrixMut) {
    let (rows, columns) = tile_shape(c.rows, c.columns, a.columns);
    let tiles = c.tiles(rows, columns);
    workers.each(tiles.into_iter(), |(row, column, mut tile)| {
        let a = a.row_range(row, tile.rows);
        let b = b.column_range(column, tile.columns);
        gemm(alpha, a, b, output, &mut tile);
    });
}

/// Rows and columns of a tile. The columns are a multiple of the 64 that a
/// kernel of the `gemm` crate makes at once: 576 columns in eight tiles of 72
/// would waste a third of the work. With a depth of some hundred a tile's
/// operands fit into the second-level cache.
const TILE: (usize, usize) = (256, 192);

/// How a product is cut, by its shape alone: into tiles large enough that
/// packing the operands is a small part of the work, and enough of them that
/// two threads end together.
fn tile_shape(rows: usize, columns: usize, depth: usize) -> (usize, usize) {
    if rows * columns * depth < 1 << 18 {
        return (rows, columns);
    }
    if rows <= 8 {
        // Bound by reading the weights: even shares matter, kernels do not.
        return (rows, TILE.1 / 2);
    }
    if depth <= 64 {
        // Bound by reading and writing c: whole rows lie side by side.
        return ((1 << 18) / columns.max(1) / 32 * 32 + 32, columns);
    }
    // A narrow product gives more tiles by being cut shorter.
    let height = if columns < TILE.1 / 2 { TILE.0 / 2 } else { TILE.0 };
    (height, TILE.1)
}
