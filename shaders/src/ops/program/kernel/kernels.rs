//! The kernels: chains of elementwise operations, alone or before a reduction,
//! and the transpose.

use cubecl::prelude::*;
use finetuned_plugin_api::program::{Binary, Reduction, Unary};

use super::code::{Code, INFINITY, NAN, Sink, Spread, Step, book};
use crate::gpu::cube::{cube_max, cube_sum, halvings};

/// Elements that share a scale, and units of a cube that works on them.
pub(super) const UNITS: usize = finetuned_plugin_api::program::BLOCK;

/// Elements that one cube reduces.
pub(super) const PIECE: usize = 4096;

/// Rows that one unit reduces.
pub(super) const HEIGHT: usize = 64;

/// The bits of +∞: magnitudes above it are NaN.
const INFINITE: u32 = 0x7f80_0000;

/// The code of 0 among numbers of both signs: the middle of the codebook.
const SIGNED_ZERO: u32 = 127;

#[cube]
fn magnitude(x: f32) -> u32 {
    u32::reinterpret(x) & 0x7fff_ffffu32
}

/// By bits: compilers for shaders may take it that no number is NaN.
#[cube]
fn is_nan(x: f32) -> bool {
    magnitude(x) > INFINITE
}

#[cube]
fn round_bf16(x: f32) -> f32 {
    let bits = u32::reinterpret(x);
    let rounded = (bits + (0x7fffu32 + ((bits >> 16u32) & 1u32))) & 0xffff_0000u32;
    select(is_nan(x), x, f32::reinterpret(rounded))
}

#[cube]
fn unary(x: f32, #[comptime] op: Unary) -> f32 {
    match comptime!(op) {
        Unary::Negate => -x,
        Unary::Absolute => x.abs(),
        Unary::Sign => {
            let sign = select(x > 0.0f32, 1.0f32, select(x < 0.0f32, -1.0f32, 0.0f32));
            select(is_nan(x), x, sign)
        }
        Unary::Sqrt => x.sqrt(),
        Unary::Exp => x.exp(),
        Unary::Ln => x.ln(),
        Unary::RoundBf16 => round_bf16(x),
    }
}

#[cube]
fn binary(a: f32, b: f32, table: &[u32], #[comptime] op: Binary) -> f32 {
    match comptime!(op) {
        Binary::Add => a + b,
        Binary::Subtract => a - b,
        Binary::Multiply => a * b,
        Binary::Divide => a / b,
        Binary::Minimum => select(is_nan(a), b, select(is_nan(b), a, select(b < a, b, a))),
        Binary::Maximum => select(is_nan(a), b, select(is_nan(b), a, select(a < b, b, a))),
        Binary::Power => power(a, b, table),
        Binary::Less => select(a < b, 1.0f32, 0.0f32),
    }
}

/// a to the power of b with the cases that C's `powf` has.
#[cube]
fn power(a: f32, b: f32, table: &[u32]) -> f32 {
    let infinity = f32::reinterpret(table[INFINITY]);
    let nan = f32::reinterpret(table[NAN]);
    let size = a.abs();
    let exponent = b.abs();
    // From 2²⁴ on every f32 is an even whole number.
    let large = exponent >= 16_777_216.0f32;
    let whole = large || exponent.floor() == exponent;
    let half = exponent * 0.5f32;
    let odd = !large && whole && half.floor() != half;
    let grows = select(size > 1.0f32, b > 0.0f32, b < 0.0f32);
    let of_positive = (b * size.ln()).exp();
    // The ends, where a product of 0 and ∞ would make NaN.
    let extreme = size == 0.0f32 || magnitude(a) == INFINITE || magnitude(b) == INFINITE;
    let at_ends = select(size == 1.0f32, 1.0f32, select(grows, infinity, 0.0f32));
    let positive = select(extreme, at_ends, of_positive);
    let negative = u32::reinterpret(a) >= 0x8000_0000u32;
    let signed = select(negative && odd, -positive, positive);
    let finite_negative = a < 0.0f32 && magnitude(a) != INFINITE;
    let no_root = finite_negative && !whole && magnitude(b) != INFINITE;
    let known = select(no_root || is_nan(a) || is_nan(b), nan, signed);
    select(b == 0.0f32 || a == 1.0f32, 1.0f32, known)
}

/// An element of 8 bits: codes lie four a word, and the scales behind them.
#[cube]
fn decode(bytes: &[u32], i: usize, n: usize, table: &[u32], #[comptime] book: usize) -> f32 {
    let word = bytes[i / 4];
    let code = (word >> (8u32 * (i % 4) as u32)) & 255u32;
    let scale = f32::reinterpret(bytes[n.div_ceil(4) + i / UNITS]);
    f32::reinterpret(table[book + code as usize]) * scale
}

/// All values of a chain at (row, column), which is element i of n.
#[cube]
#[allow(clippy::too_many_arguments)]
fn evaluate(
    table: &[u32],
    buffers: &Sequence<Box<[u32]>>,
    i: usize,
    row: usize,
    column: usize,
    n: usize,
    #[comptime] code: Code,
) -> Sequence<f32> {
    let mut values = Sequence::<f32>::new();
    #[unroll]
    for k in 0..comptime!(code.steps.len()) {
        let step = comptime!(code.steps[k]);
        let value = match comptime!(step) {
            Step::Table(place) => f32::reinterpret(table[comptime!(place)]),
            Step::Read(buffer, spread) => {
                let at = match comptime!(spread) {
                    Spread::Whole => i,
                    Spread::Row => row,
                    Spread::Column => column,
                    Spread::One => 0usize.runtime(),
                };
                f32::reinterpret(buffers[comptime!(buffer)][at])
            }
            Step::Decode(buffer, signed) => decode(&buffers[comptime!(buffer)], i, n, table, comptime!(book(signed))),
            Step::Unary(op, a) => unary(values[comptime!(a)], op),
            Step::Binary(op, a, b) => binary(values[comptime!(a)], values[comptime!(b)], table, op),
            // A NaN is not 0: the test for equality says so on every device.
            Step::Select(c, a, b) => select(values[comptime!(c)] == 0.0f32, values[comptime!(b)], values[comptime!(a)]),
        };
        values.push(value);
    }
    values
}

/// The code nearest to a value of a block whose largest magnitude has the bits
/// `largest`; of two as near, the lower.
#[cube]
fn nearest(value: f32, largest: u32, table: &[u32], #[comptime] signed: bool, #[comptime] book: usize) -> u32 {
    let zero = comptime!(if signed { SIGNED_ZERO } else { 0u32 });
    let x = value / f32::reinterpret(largest);
    let size = x.abs();
    // How many half ways lie below: a search in halves.
    let mut below = 0u32;
    #[unroll]
    for step in 0..8usize {
        let half = comptime!(128u32 >> step);
        if f32::reinterpret(table[(comptime!(book as u32 + 256u32 + half - 1u32) + below) as usize]) < size {
            below += half;
        }
    }
    // The signed map is symmetric about its zero but for the lone +1.
    let negative = comptime!(2u32 * zero) - select(comptime!(signed), min(below, 254u32), 0u32);
    let code = select(x < 0.0f32, negative, below);
    let broken = select(largest >= INFINITE, 255u32, code);
    select(largest == 0u32, zero, broken)
}

/// One block, one unit an element, into a buffer of 8 bits.
#[cube]
#[allow(clippy::too_many_arguments)]
fn encode(
    value: f32,
    i: usize,
    n: usize,
    bytes: &mut [u32],
    table: &[u32],
    shared: &mut Shared<[u32]>,
    #[comptime] signed: bool,
    #[comptime] book: usize,
) {
    let unit = UNIT_POS as usize;
    sync_cube();
    // Magnitudes in order of their bits: a NaN's are above all others'.
    shared[unit] = select(i < n, magnitude(value), 0u32);
    sync_cube();
    #[unroll]
    for step in 0..comptime!(halvings(UNITS)) {
        let half = comptime!(UNITS >> (step + 1));
        if unit < half {
            let other = shared[unit + half];
            if other > shared[unit] {
                shared[unit] = other;
            }
        }
        sync_cube();
    }
    let largest = shared[0];
    let code = nearest(value, largest, table, signed, book);
    sync_cube();
    shared[unit] = select(i < n, code, 0u32);
    sync_cube();
    let words = n.div_ceil(4);
    let block = i / UNITS;
    let word = block * (UNITS / 4) + unit;
    if unit < UNITS / 4 && word < words {
        let four = 4 * unit;
        let low = shared[four] | (shared[four + 1] << 8u32);
        bytes[word] = low | (shared[four + 2] << 16u32) | (shared[four + 3] << 24u32);
    }
    if unit == 0 && i < n {
        bytes[words + block] = largest;
    }
}

#[cube]
fn put(buffer: &mut [u32], i: usize, value: f32) {
    buffer[i] = u32::reinterpret(value);
}

/// A chain over a matrix, one unit an element. A buffer may be read and
/// written: each unit writes only what it alone has read, but for 8 bits,
/// where the cube waits first.
#[cube(launch)]
pub(super) fn chain_kernel(
    table: &[u32],
    mut buffers: Sequence<Box<[u32]>>,
    rows: usize,
    columns: usize,
    #[comptime] code: Code,
) {
    let n = rows * columns;
    let i = ABSOLUTE_POS;
    if comptime!(code.blocked()) {
        let mut shared = Shared::<[u32]>::new_slice(UNITS);
        // Units beyond the end go along: every unit must reach the waits.
        let at = select(i < n, i, 0usize);
        let values = evaluate(table, &buffers, at, at / columns, at % columns, n, comptime!(code.clone()));
        sync_storage();
        #[unroll]
        for k in 0..comptime!(code.sinks.len()) {
            let sink = comptime!(code.sinks[k]);
            let value = values[comptime!(sink.0)];
            match comptime!(sink.1) {
                Sink::Float(buffer) => {
                    if i < n {
                        put(&mut buffers[comptime!(buffer)], i, value);
                    }
                }
                Sink::Bytes(buffer, signed) => encode(
                    value,
                    i,
                    n,
                    &mut buffers[comptime!(buffer)],
                    table,
                    &mut shared,
                    signed,
                    comptime!(book(signed)),
                ),
            }
        }
    } else if i < n {
        let values = evaluate(table, &buffers, i, i / columns, i % columns, n, comptime!(code.clone()));
        #[unroll]
        for k in 0..comptime!(code.sinks.len()) {
            let sink = comptime!(code.sinks[k]);
            match comptime!(sink.1) {
                Sink::Float(buffer) => put(&mut buffers[comptime!(buffer)], i, values[comptime!(sink.0)]),
                // Blocked chains alone have these.
                Sink::Bytes(_, _) => {}
            }
        }
    }
}

#[cube]
fn start(table: &[u32], #[comptime] op: Reduction) -> f32 {
    match comptime!(op) {
        Reduction::Sum => 0.0f32.runtime(),
        Reduction::Maximum => -f32::reinterpret(table[INFINITY]),
    }
}

#[cube]
fn take(sum: f32, x: f32, #[comptime] op: Reduction) -> f32 {
    match comptime!(op) {
        Reduction::Sum => sum + x,
        // The sum is never NaN, and a NaN is never larger.
        Reduction::Maximum => select(x > sum, x, sum),
    }
}

/// Reduces step `of` of a chain over pieces of lines, a cube a piece. A line is
/// a row, or the whole matrix; `out [lines, pieces]`.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn reduce_lines_kernel(
    table: &[u32],
    buffers: &Sequence<Box<[u32]>>,
    out: &mut [f32],
    rows: usize,
    columns: usize,
    line: usize,
    pieces: usize,
    #[comptime] code: Code,
    #[comptime] of: usize,
    #[comptime] op: Reduction,
    #[comptime] units: usize,
) {
    let mut shared = Shared::<[f32]>::new_slice(units);
    let n = rows * columns;
    let segment = CUBE_POS;
    if segment < out.len() {
        let first = segment / pieces * line;
        let begin = first + segment % pieces * PIECE;
        let end = min(begin + PIECE, first + line);
        let mut sum = start(table, op);
        let mut i = begin + UNIT_POS as usize;
        while i < end {
            let values = evaluate(table, buffers, i, i / columns, i % columns, n, comptime!(code.clone()));
            sum = take(sum, values[of], op);
            i += units;
        }
        let total = match comptime!(op) {
            Reduction::Sum => cube_sum(sum, &mut shared, units),
            Reduction::Maximum => cube_max(sum, &mut shared, units),
        };
        if UNIT_POS == 0 {
            out[segment] = total;
        }
    }
}

/// Reduces step `of` of a chain over [`HEIGHT`] rows at a time, a unit a
/// column; `out [⌈rows / HEIGHT⌉, columns]`.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn reduce_columns_kernel(
    table: &[u32],
    buffers: &Sequence<Box<[u32]>>,
    out: &mut [f32],
    rows: usize,
    columns: usize,
    #[comptime] code: Code,
    #[comptime] of: usize,
    #[comptime] op: Reduction,
) {
    let n = rows * columns;
    let place = ABSOLUTE_POS;
    if place < out.len() {
        let column = place % columns;
        let mut row = place / columns * HEIGHT;
        let end = min(row + HEIGHT, rows);
        let mut sum = start(table, op);
        while row < end {
            let values = evaluate(table, buffers, row * columns + column, row, column, n, comptime!(code.clone()));
            sum = take(sum, values[of], op);
            row += 1;
        }
        out[place] = sum;
    }
}

/// Rows and columns of a tile of [`transpose_kernel`].
pub(super) const TILE: usize = 16;

/// x `[rows, columns]` to y `[columns, rows]`, a cube a tile.
#[cube(launch)]
pub(super) fn transpose_kernel(x: &[f32], y: &mut [f32], rows: usize, columns: usize) {
    // A column more than a tile has, so that no two units of a tile's column
    // wait for one bank.
    let mut tile = Shared::<[f32]>::new_slice(comptime!(TILE * (TILE + 1)));
    let across = columns.div_ceil(TILE);
    let top = CUBE_POS / across * TILE;
    let left = CUBE_POS % across * TILE;
    let unit = UNIT_POS as usize;
    let (slow, fast) = (unit / TILE, unit % TILE);
    if top + slow < rows && left + fast < columns {
        tile[slow * (TILE + 1) + fast] = x[(top + slow) * columns + left + fast];
    }
    sync_cube();
    if left + slow < columns && top + fast < rows {
        y[(left + slow) * rows + top + fast] = tile[fast * (TILE + 1) + slow];
    }
}
