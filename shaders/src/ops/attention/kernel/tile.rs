//! The two products of a tile, in registers: rows of scores from two staged
//! tiles, and weighted sums of a staged tile's rows.
//!
//! A cube has 8 × 8 units. A unit's place in the first eight (`band`) owns
//! `rows` rows of the cube's tile, its place in the second (`lane`) owns four
//! of the [`OTHERS`] rows on the other side, and every eighth group of four
//! columns of a head.

use cubecl::prelude::*;

/// Units of a cube.
pub(super) const UNITS: usize = 64;
/// Rows on the other side of a tile: keys where the cube's rows are queries,
/// queries where they are keys.
pub(super) const OTHERS: usize = 32;
/// Groups of four columns that are staged at a time for scores.
const DEPTH: usize = 8;
/// Between staged rows there is a place more, so that the eight lanes read
/// from different banks.
const STRIDE: usize = DEPTH + 1;
/// Stands for the score of what a query does not see, and for the largest
/// score before there is one: finite, for shader compilers may take it that
/// there are no infinities.
pub(super) const LEAST: f32 = -3.0e38;

/// Four numbers, the width of a load.
pub(super) type Four = Vector<f32, Const<4>>;

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub dim: usize,
    /// Rows of a unit: a cube's tile has eight times as many.
    pub rows: usize,
    pub capped: bool,
}

impl Shape {
    /// Groups of four columns of a head.
    pub fn fours(&self) -> usize {
        self.dim.div_ceil(4)
    }

    /// Groups of four columns of a unit.
    pub fn chunks(&self) -> usize {
        self.fours().div_ceil(8)
    }

    /// In how many equal parts the scores' depth is staged.
    pub fn parts(&self) -> usize {
        self.fours().div_ceil(DEPTH)
    }

    /// Groups of four columns of a part.
    pub fn depth(&self) -> usize {
        self.fours().div_ceil(self.parts())
    }

    /// Rows of the cube's tile.
    pub fn tile(&self) -> usize {
        8 * self.rows
    }

    /// Chunks of the other side's columns that are staged at a time.
    pub fn pass(&self) -> usize {
        self.chunks().min(2)
    }

    pub fn passes(&self) -> usize {
        self.chunks().div_ceil(self.pass())
    }

    /// Where the other side's tile begins in the stage.
    pub fn other_at(&self) -> usize {
        self.tile() * STRIDE
    }

    /// Places of four numbers of the stage.
    pub fn stage(&self) -> usize {
        (self.other_at() + OTHERS * STRIDE).max(OTHERS * 8 * self.pass())
    }
}

/// Does the query at this position see the key?
#[cube]
pub(super) fn sees(query: usize, key: usize, window: usize) -> bool {
    key <= query && key + window > query
}

/// Four columns of row `row` (a token's head) of x; what is beyond the row's
/// end is 0.
#[cube]
fn load<N: Size>(x: &[Vector<f32, N>], row: usize, four: usize, #[comptime] dim: usize) -> Four {
    let mut value = Four::new(0.0f32);
    if comptime!(dim.is_multiple_of(4)) {
        value = Four::cast_from(x[row * comptime!(dim / 4) + four]);
    } else {
        #[unroll]
        for e in 0..4usize {
            if 4 * four + e < dim {
                value.insert(e, x[row * dim + 4 * four + e].extract(0usize));
            }
        }
    }
    value
}

/// Writes four columns of a row, as far as it has them.
#[cube]
pub(super) fn store<N: Size>(x: &mut [Vector<f32, N>], row: usize, four: usize, value: Four, #[comptime] dim: usize) {
    if comptime!(dim.is_multiple_of(4)) {
        if four < comptime!(dim / 4) {
            x[row * comptime!(dim / 4) + four] = Vector::cast_from(value);
        }
    } else {
        #[unroll]
        for e in 0..4usize {
            if 4 * four + e < dim {
                x[row * dim + 4 * four + e] = Vector::new(value.extract(e));
            }
        }
    }
}

/// Stages `columns` groups of four columns, from group `four`, of `rows`
/// tokens of a head from `token`; tokens beyond `end` and columns beyond the
/// head's are 0. Where `turned`, row 4a + b is put in place 8b + a, so that
/// the lanes' rows are neighbours.
#[cube]
#[allow(clippy::too_many_arguments)]
fn stage_rows<N: Size>(
    stage: &mut Shared<[Four]>,
    x: &[Vector<f32, N>],
    token: usize,
    end: usize,
    heads: usize,
    head: usize,
    four: usize,
    #[comptime] at: usize,
    #[comptime] rows: usize,
    #[comptime] columns: usize,
    #[comptime] stride: usize,
    #[comptime] turned: bool,
    #[comptime] shape: Shape,
) {
    let unit = UNIT_POS as usize;
    let (dim, fours) = comptime!((shape.dim, shape.fours()));
    #[unroll]
    for step in 0..comptime!((rows * columns).div_ceil(UNITS)) {
        let i = unit + comptime!(step * UNITS);
        if i < comptime!(rows * columns) {
            let row = i / columns;
            let column = i % columns;
            let mut value = Four::new(0.0f32);
            if token + row < end && four + column < fours {
                value = load::<N>(x, (token + row) * heads + head, four + column, dim);
            }
            let mut place = row;
            if comptime!(turned) {
                place = (row % 4) * 8 + row / 4;
            }
            stage[at + place * stride + column] = value;
        }
    }
}

/// Scores of the unit's rows of `a` (tokens from `a_token`) and its four of
/// `b`: `scores[4r + j] = a_r · b_j`.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn dots<N: Size>(
    scores: &mut Array<f32>,
    stage: &mut Shared<[Four]>,
    a: &[Vector<f32, N>],
    a_token: usize,
    a_end: usize,
    a_heads: usize,
    a_head: usize,
    b: &[Vector<f32, N>],
    b_token: usize,
    b_end: usize,
    b_heads: usize,
    b_head: usize,
    #[comptime] shape: Shape,
) {
    let band = UNIT_POS as usize / 8;
    let lane = UNIT_POS as usize % 8;
    let (rows, depth, tile, other_at) = comptime!((shape.rows, shape.depth(), shape.tile(), shape.other_at()));
    #[unroll]
    for i in 0..comptime!(4 * rows) {
        scores[i] = 0.0f32;
    }
    for part in 0..comptime!(shape.parts()) {
        let four = part * depth;
        sync_cube();
        stage_rows::<N>(stage, a, a_token, a_end, a_heads, a_head, four, 0usize, tile, depth, STRIDE, false, shape);
        stage_rows::<N>(stage, b, b_token, b_end, b_heads, b_head, four, other_at, OTHERS, depth, STRIDE, true, shape);
        sync_cube();
        // Not unrolled: drivers unroll as they like, and compile sooner.
        for c in 0..depth {
            let b0 = stage[other_at + lane * STRIDE + c];
            let b1 = stage[other_at + (8 + lane) * STRIDE + c];
            let b2 = stage[other_at + (16 + lane) * STRIDE + c];
            let b3 = stage[other_at + (24 + lane) * STRIDE + c];
            #[unroll]
            for r in 0..rows {
                let a = stage[(band * rows + r) * STRIDE + c];
                scores[4 * r] += a.dot(b0);
                scores[4 * r + 1] += a.dot(b1);
                scores[4 * r + 2] += a.dot(b2);
                scores[4 * r + 3] += a.dot(b3);
            }
        }
    }
}

/// Adds `Σ_j w[r][j] x_j` over the other side's tokens (from `token`) to the
/// unit's sums, `[rows, chunks]`. `weights` is the tile `[8 rows, OTHERS]`.
///
/// Where `edge`, only pairs that see each other are added, since 0 · NaN is
/// NaN: the cube's rows stand from `row_token`, and are keys or queries.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn weighted<N: Size>(
    sums: &mut Array<Four>,
    weights: &Shared<[Four]>,
    stage: &mut Shared<[Four]>,
    x: &[Vector<f32, N>],
    token: usize,
    end: usize,
    heads: usize,
    head: usize,
    row_at: usize,
    other_at: usize,
    window: usize,
    edge: bool,
    #[comptime] rows_are_keys: bool,
    #[comptime] shape: Shape,
) {
    let (pass, chunks) = comptime!((shape.pass(), shape.chunks()));
    #[unroll]
    for step in 0..comptime!(shape.passes()) {
        let first = comptime!(step * pass);
        let width = comptime!(pass.min(chunks - first));
        sync_cube();
        stage_rows::<N>(
            stage,
            x,
            token,
            end,
            heads,
            head,
            8 * first,
            0usize,
            OTHERS,
            comptime!(8 * width),
            comptime!(8 * width),
            false,
            shape,
        );
        sync_cube();
        if edge {
            add_pass(sums, weights, stage, row_at, other_at, window, first, width, true, rows_are_keys, shape);
        } else {
            add_pass(sums, weights, stage, row_at, other_at, window, first, width, false, rows_are_keys, shape);
        }
    }
}

/// The columns of `width` chunks from chunk `first`.
#[cube]
#[allow(clippy::too_many_arguments)]
fn add_pass(
    sums: &mut Array<Four>,
    weights: &Shared<[Four]>,
    stage: &mut Shared<[Four]>,
    row_at: usize,
    other_at: usize,
    window: usize,
    #[comptime] first: usize,
    #[comptime] width: usize,
    #[comptime] edge: bool,
    #[comptime] rows_are_keys: bool,
    #[comptime] shape: Shape,
) {
    let band = UNIT_POS as usize / 8;
    let lane = UNIT_POS as usize % 8;
    let (rows, chunks) = comptime!((shape.rows, shape.chunks()));
    for group in 0..comptime!(OTHERS / 4) {
        let mut w = Array::<Four>::new(rows);
        #[unroll]
        for r in 0..rows {
            w[r] = weights[(band * rows + r) * comptime!(OTHERS / 4) + group];
        }
        #[unroll]
        for e in 0..4usize {
            let mut x = Array::<Four>::new(width);
            #[unroll]
            for chunk in 0..width {
                x[chunk] = stage[(4 * group + e) * comptime!(8 * width) + 8 * chunk + lane];
            }
            #[unroll]
            for r in 0..rows {
                let weight = Four::new(w[r].extract(e));
                if comptime!(edge) {
                    let row = row_at + band * rows + r;
                    let other = other_at + 4 * group + e;
                    let seen =
                        if comptime!(rows_are_keys) { sees(other, row, window) } else { sees(row, other, window) };
                    if seen {
                        #[unroll]
                        for chunk in 0..width {
                            sums[comptime!(r * chunks + first + chunk)] += x[chunk] * weight;
                        }
                    }
                } else {
                    #[unroll]
                    for chunk in 0..width {
                        sums[comptime!(r * chunks + first + chunk)] += x[chunk] * weight;
                    }
                }
            }
        }
    }
}
