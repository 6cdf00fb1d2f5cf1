//! One stream: blocks through a chain of elementwise operations.

use std::sync::PoisonError;

use finetuned_plugin_api::program::{
    Axis, BLOCK, Binary, MOST_STATES, Reduction, StateSlice, Unary, scalar_binary, scalar_unary,
};

use super::prefetch::prefetch;
use super::{Data, Room};
use crate::cpu::simd::dispatch;
use crate::cpu::workers::Workers;
use crate::ops::program::plan::{Action, MOST_SINKS, Memory, Scalar, Source, Stream};

/// Elements of a block, a multiple of [`BLOCK`]: a dozen registers of it fit
/// the first cache.
const CHUNK: usize = 512;
/// Elements of a piece of work, a multiple of [`CHUNK`].
const PIECE: usize = 1 << 16;
/// The most pieces that keep a sum a column each.
const MOST_COLUMN_PIECES: usize = 64;
/// Running sums side by side, added up in a fixed order.
const LANES: usize = 16;

const _: () = assert!(CHUNK.is_multiple_of(BLOCK) && PIECE.is_multiple_of(CHUNK));

/// The states of a step, in the program's order.
pub(super) type States<'a> = [Option<StateSlice<'a>>; MOST_STATES];

/// A thread's registers, each of [`CHUNK`] elements.
pub(super) type Registers = Vec<Vec<f32>>;

/// A part of a stream that one thread works through.
struct Piece<'a> {
    /// Of its first element, in the stream's shape.
    start: usize,
    length: usize,
    stores: [&'a mut [f32]; MOST_SINKS],
    /// The rows of each sum of [`Axis::EachRow`].
    row_sums: [&'a mut [f32]; MOST_SINKS],
    /// Of the other sums, one after another.
    partials: &'a mut [f64],
    held: Held<'a>,
}

/// What the last stream both reads and writes; empty in all others.
struct Held<'a> {
    parameter: Option<&'a mut [f32]>,
    states: States<'a>,
}

/// Cuts a stream's destinations into pieces.
struct Pieces<'a> {
    next: usize,
    end: usize,
    size: usize,
    columns: usize,
    stride: usize,
    rest: Option<Piece<'a>>,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        let rest = self.rest.take()?;
        let length = self.size.min(self.end - self.next);
        if length == 0 {
            return None;
        }
        let Piece { mut stores, mut row_sums, partials, held: Held { parameter, mut states }, .. } = rest;
        // Destinations that this stream has not are empty.
        let cut = |slices: &mut [&'a mut [f32]; MOST_SINKS], at: usize| {
            let mut head = [const { None }; MOST_SINKS];
            for (slice, head) in slices.iter_mut().zip(&mut head) {
                let whole = std::mem::take(slice);
                let (first, second) = whole.split_at_mut(at.min(whole.len()));
                *head = Some(first);
                *slice = second;
            }
            head.map(|slice: Option<&'a mut [f32]>| slice.unwrap_or_default())
        };
        let head_stores = cut(&mut stores, length);
        let head_rows = cut(&mut row_sums, length / self.columns.max(1));
        let (head_partials, partials) = partials.split_at_mut(self.stride.min(partials.len()));
        let (head_parameter, parameter) = match parameter {
            Some(parameter) => {
                let (first, second) = parameter.split_at_mut(length);
                (Some(first), Some(second))
            }
            None => (None, None),
        };
        let mut head_states: States<'a> = [const { None }; MOST_STATES];
        for (state, head) in states.iter_mut().zip(&mut head_states) {
            if let Some(whole) = state.take() {
                let (first, second) = whole.split_at(length);
                *head = Some(first);
                *state = Some(second);
            }
        }
        let start = self.next;
        self.next += length;
        let held = Held { parameter, states };
        self.rest = Some(Piece { start: self.next, length: 0, stores, row_sums, partials, held });
        Some(Piece {
            start,
            length,
            stores: head_stores,
            row_sums: head_rows,
            partials: head_partials,
            held: Held { parameter: head_parameter, states: head_states },
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let count = (self.end - self.next).div_ceil(self.size.max(1));
        (count, Some(count))
    }
}

impl ExactSizeIterator for Pieces<'_> {}

/// f64 places that a piece keeps for a sum.
fn partial_size(axis: Axis, columns: usize) -> usize {
    match axis {
        Axis::All => 1,
        Axis::EachRow => 0,
        Axis::EachColumn => columns,
    }
}

/// Elements of a piece; from the shape alone, so that sums are.
fn piece_size(stream: &Stream) -> usize {
    let (rows, columns) = (stream.rows, stream.columns);
    if !stream.sums.iter().any(|sum| sum.axis != Axis::All) {
        return PIECE;
    }
    // Whole rows; if a state has blocks, as many as end at a block's end.
    let unit = if stream.blocked { BLOCK / gcd(columns, BLOCK) } else { 1 };
    let wanted = PIECE.max((rows * columns).div_ceil(MOST_COLUMN_PIECES));
    wanted.div_ceil(columns).next_multiple_of(unit) * columns
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What the threads share.
struct Shared<'s> {
    stream: &'s Stream,
    scalars: &'s [f32],
    /// `None` while the last stream holds it in pieces.
    parameter: Option<&'s [f32]>,
    gradient: &'s [f32],
    states: [Option<&'s [f32]>; MOST_STATES],
    all_states: &'s States<'s>,
    buffers: &'s [Vec<f32>],
}

/// Runs a stream.
pub(super) fn run(workers: &Workers, stream: &Stream, data: &mut Data, room: &mut Room) {
    let (rows, columns) = (stream.rows, stream.columns);
    let n = rows * columns;
    room.scalars.clear();
    for scalar in &stream.scalars {
        let value = match scalar {
            Scalar::Uniform(id) => data.uniforms[id.index()] as f32,
            Scalar::Memory(memory) => data.read(room, *memory).first().copied().unwrap_or(f32::NAN),
        };
        room.scalars.push(value);
    }
    let size = piece_size(stream);
    let stride: usize = stream.sums.iter().map(|sum| partial_size(sum.axis, columns)).sum();
    let pieces = n.div_ceil(size);
    room.partials.clear();
    for _ in 0..pieces {
        for sum in &stream.sums {
            let places = partial_size(sum.axis, columns);
            room.partials.extend(std::iter::repeat_n(sum.op.start(), places));
        }
    }

    // Destinations are moved out while the pass writes them.
    let mut stores: [Vec<f32>; MOST_SINKS] = Default::default();
    for ((_, into), store) in stream.stores.iter().zip(&mut stores) {
        *store = std::mem::take(&mut room.buffers[*into]);
    }
    let mut sums: [Vec<f32>; MOST_SINKS] = Default::default();
    for (sum, into) in stream.sums.iter().zip(&mut sums) {
        *into = std::mem::take(&mut room.buffers[sum.into]);
    }
    {
        let mut rest = Piece {
            start: 0,
            length: 0,
            stores: Default::default(),
            row_sums: Default::default(),
            partials: &mut room.partials,
            held: Held { parameter: None, states: [const { None }; MOST_STATES] },
        };
        let slots = stores.iter_mut().zip(&mut rest.stores).take(stream.stores.len());
        slots.for_each(|(store, slot)| *slot = &mut store[..n]);
        for ((sum, into), slot) in stream.sums.iter().zip(&mut sums).zip(&mut rest.row_sums) {
            if sum.axis == Axis::EachRow {
                *slot = &mut into[..rows];
            }
        }
        // The last stream takes the parameter and every state of its shape
        // apart, whether it writes them or reads them only.
        let last = stream.parameter.is_some();
        let mut kept: States = [const { None }; MOST_STATES];
        let (mut parameter, mut shared_parameter) = (None, None);
        if last {
            parameter = Some(&mut *data.parameter);
            for ((state, kept), piece) in data.states.iter_mut().zip(&mut kept).zip(&mut rest.held.states) {
                let Some(state) = state.as_mut() else { continue };
                let slot = if state.elements() == n { piece } else { kept };
                *slot = Some(reborrow(state));
            }
        } else {
            shared_parameter = Some(&*data.parameter);
            for (state, kept) in data.states.iter_mut().zip(&mut kept) {
                *kept = state.as_mut().map(reborrow);
            }
        }
        rest.held.parameter = parameter;
        let shared = Shared {
            stream,
            scalars: &room.scalars,
            parameter: shared_parameter,
            gradient: data.gradient,
            states: std::array::from_fn(|index| match &kept[index] {
                Some(StateSlice::F32(values)) => Some(&**values),
                _ => None,
            }),
            all_states: &kept,
            buffers: &room.buffers,
        };
        let pieces = Pieces { next: 0, end: n, size, columns, stride, rest: Some(rest) };
        let pool = &room.registers;
        workers.each(pieces, |mut piece| {
            let taken = pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut registers = taken.unwrap_or_default();
            while registers.len() < stream.registers {
                registers.push(vec![0.0; CHUNK]);
            }
            dispatch(
                #[inline(always)]
                || shared.work(&mut piece, &mut registers),
            );
            pool.lock().unwrap_or_else(PoisonError::into_inner).push(registers);
        });
    }

    // Partial sums are added in the order of the pieces.
    let mut offset = 0;
    for (sum, into) in stream.sums.iter().zip(&mut sums) {
        let places = partial_size(sum.axis, columns);
        for (place, into) in into.iter_mut().enumerate().take(places) {
            let mut total = sum.op.start();
            (0..pieces).for_each(|piece| sum.op.merge(&mut total, room.partials[piece * stride + offset + place]));
            *into = total as f32;
        }
        offset += places;
    }
    for ((_, into), store) in stream.stores.iter().zip(stores) {
        room.buffers[*into] = store;
    }
    for (sum, values) in stream.sums.iter().zip(sums) {
        room.buffers[sum.into] = values;
    }
}

fn reborrow<'a>(state: &'a mut StateSlice) -> StateSlice<'a> {
    match state {
        StateSlice::F32(values) => StateSlice::F32(values),
        StateSlice::BlockwiseU8 { codes, scales, signed } => StateSlice::BlockwiseU8 { codes, scales, signed: *signed },
    }
}

/// An operand of a block.
#[derive(Clone, Copy)]
enum Operand<'a> {
    Many(&'a [f32]),
    One(f32),
}

impl Shared<'_> {
    #[inline(always)]
    fn work(&self, piece: &mut Piece, registers: &mut Registers) {
        let mut done = 0;
        // Where a row is summed across blocks.
        let mut open_rows = [0.0f64; MOST_SINKS];
        while done < piece.length {
            let length = CHUNK.min(piece.length - done);
            let ahead = CHUNK.min(piece.length - done - length);
            let parts = self.stream.actions.len();
            for (part, (register, action)) in self.stream.actions.iter().enumerate() {
                self.ask_ahead((piece.start, &piece.held), done + length, ahead, part, parts);
                let mut into = std::mem::take(&mut registers[*register]);
                self.act(action, &mut into[..length], piece, done, registers);
                registers[*register] = into;
            }
            self.finish(piece, done, length, registers, &mut open_rows);
            done += length;
        }
    }

    /// Asks for a part of the next block, so that it comes while this one is
    /// computed.
    #[inline(always)]
    fn ask_ahead(&self, (piece, held): (usize, &Held), next: usize, length: usize, part: usize, parts: usize) {
        let start = piece + next;
        for memory in &self.stream.reads {
            match memory {
                Memory::Gradient => prefetch(&self.gradient[start..start + length], part, parts),
                Memory::Buffer(index) => prefetch(&self.buffers[*index][start..start + length], part, parts),
                Memory::Parameter => match (&held.parameter, self.parameter) {
                    (Some(parameter), _) => prefetch(&parameter[next..next + length], part, parts),
                    (None, Some(parameter)) => prefetch(&parameter[start..start + length], part, parts),
                    (None, None) => {}
                },
                Memory::State(index) => match (&held.states[*index], &self.all_states[*index]) {
                    (Some(StateSlice::F32(state)), _) => prefetch(&state[next..next + length], part, parts),
                    (Some(StateSlice::BlockwiseU8 { codes, .. }), _) => {
                        prefetch(&codes[next..next + length], part, parts);
                    }
                    (None, Some(StateSlice::F32(state))) => prefetch(&state[start..start + length], part, parts),
                    (None, Some(StateSlice::BlockwiseU8 { codes, .. })) => {
                        prefetch(&codes[start..start + length], part, parts);
                    }
                    (None, None) => {}
                },
            }
        }
    }

    /// What a source holds for the block that begins `done` into the piece.
    #[inline(always)]
    fn operand<'a>(
        &'a self,
        source: Source,
        (piece, held): (usize, &'a Held),
        done: usize,
        length: usize,
        registers: &'a Registers,
    ) -> Operand<'a> {
        let start = piece + done;
        match source {
            Source::Register(register) => Operand::Many(&registers[register][..length]),
            Source::Scalar(index) => Operand::One(self.scalars[index]),
            Source::Memory(Memory::Gradient) => Operand::Many(&self.gradient[start..start + length]),
            Source::Memory(Memory::Buffer(index)) => Operand::Many(&self.buffers[index][start..start + length]),
            Source::Memory(Memory::Parameter) => match (&held.parameter, self.parameter) {
                (Some(parameter), _) => Operand::Many(&parameter[done..done + length]),
                (None, Some(parameter)) => Operand::Many(&parameter[start..start + length]),
                (None, None) => Operand::One(f32::NAN),
            },
            Source::Memory(Memory::State(index)) => match (&held.states[index], self.states[index]) {
                (Some(StateSlice::F32(state)), _) => Operand::Many(&state[done..done + length]),
                (_, Some(state)) => Operand::Many(&state[start..start + length]),
                _ => Operand::One(f32::NAN),
            },
        }
    }

    #[inline(always)]
    fn act(&self, action: &Action, into: &mut [f32], piece: &Piece, done: usize, registers: &Registers) {
        let length = into.len();
        let operand = |source| self.operand(source, (piece.start, &piece.held), done, length, registers);
        match *action {
            Action::Unary(op, a) => unary(op, operand(a), into),
            Action::Binary(op, a, b) => binary(op, operand(a), operand(b), into),
            Action::Select(c, a, b) => {
                if let (Operand::Many(c), Operand::Many(a), Operand::Many(b)) = (operand(c), operand(a), operand(b)) {
                    for (((into, c), a), b) in into.iter_mut().zip(c).zip(a).zip(b) {
                        *into = if *c != 0.0 { *a } else { *b };
                    }
                }
            }
            Action::Copy(a) => match operand(a) {
                Operand::Many(a) => into.copy_from_slice(a),
                Operand::One(a) => into.fill(a),
            },
            Action::Load(state) => match (&piece.held.states[state], &self.all_states[state]) {
                (Some(state), _) => state.read(done, into),
                (None, Some(state)) => state.read(piece.start + done, into),
                (None, None) => into.fill(f32::NAN),
            },
            Action::RepeatRow(memory) => {
                let values = self.small(memory);
                rows_of(piece.start + done, self.stream.columns, into, |row, _, into| into.fill(values[row]));
            }
            Action::RepeatColumns(memory) => {
                let values = self.small(memory);
                rows_of(piece.start + done, self.stream.columns, into, |_, column, into| {
                    into.copy_from_slice(&values[column..column + into.len()]);
                });
            }
        }
    }

    /// A value that is smaller than the stream.
    fn small(&self, memory: Memory) -> &[f32] {
        match memory {
            Memory::Parameter => self.parameter.unwrap_or_default(),
            Memory::Gradient => self.gradient,
            Memory::State(index) => self.states[index].unwrap_or_default(),
            Memory::Buffer(index) => &self.buffers[index],
        }
    }

    /// Sums and writes a block.
    #[inline(always)]
    fn finish(
        &self,
        piece: &mut Piece,
        done: usize,
        length: usize,
        registers: &Registers,
        open_rows: &mut [f64; MOST_SINKS],
    ) {
        let columns = self.stream.columns;
        let mut offset = 0;
        for (index, sum) in self.stream.sums.iter().enumerate() {
            let start = piece.start + done;
            let one;
            // A (1, 1) stream may sum a scalar.
            let values = match self.operand(sum.of, (piece.start, &piece.held), done, length, registers) {
                Operand::Many(values) => values,
                Operand::One(value) => {
                    one = [value];
                    &one[..]
                }
            };
            match sum.axis {
                Axis::All => {
                    let total = total(sum.op, values);
                    sum.op.merge(&mut piece.partials[offset], total);
                }
                Axis::EachColumn => {
                    let mut at = start;
                    let mut values = values;
                    while !values.is_empty() {
                        let column = at % columns;
                        let (now, later) = values.split_at(values.len().min(columns - column));
                        let into = &mut piece.partials[offset + column..offset + column + now.len()];
                        into.iter_mut().zip(now).for_each(|(into, x)| sum.op.add(into, *x));
                        at += now.len();
                        values = later;
                    }
                }
                Axis::EachRow => {
                    let mut at = start;
                    let mut values = values;
                    while !values.is_empty() {
                        let (row, column) = (at / columns, at % columns);
                        let (now, later) = values.split_at(values.len().min(columns - column));
                        if column == 0 {
                            open_rows[index] = sum.op.start();
                        }
                        sum.op.merge(&mut open_rows[index], total(sum.op, now));
                        if column + now.len() == columns {
                            piece.row_sums[index][row - piece.start / columns] = open_rows[index] as f32;
                        }
                        at += now.len();
                        values = later;
                    }
                }
            }
            offset += partial_size(sum.axis, columns);
        }
        for (index, (from, _)) in self.stream.stores.iter().enumerate() {
            let into = std::mem::take(&mut piece.stores[index]);
            put(
                self.operand(*from, (piece.start, &piece.held), done, length, registers),
                &mut into[done..done + length],
            );
            piece.stores[index] = into;
        }
        if let (Some(from), Some(into)) = (self.stream.parameter, piece.held.parameter.take()) {
            put(
                self.operand(from, (piece.start, &piece.held), done, length, registers),
                &mut into[done..done + length],
            );
            piece.held.parameter = Some(into);
        }
        for (from, state) in &self.stream.states {
            let Some(mut into) = piece.held.states[*state].take() else { continue };
            match (self.operand(*from, (piece.start, &piece.held), done, length, registers), &mut into) {
                (from, StateSlice::F32(into)) => put(from, &mut into[done..done + length]),
                (Operand::Many(from), into) => into.write(done, from),
                (Operand::One(value), into) => {
                    // Only a parameter of one element takes a scalar whole.
                    into.write(done, &[value]);
                }
            }
            piece.held.states[*state] = Some(into);
        }
    }
}

#[inline(always)]
fn put(from: Operand, into: &mut [f32]) {
    match from {
        Operand::Many(from) => into.copy_from_slice(from),
        Operand::One(from) => into.fill(from),
    }
}

/// Cuts a block at the ends of rows: `f(row, column, part)`.
#[inline(always)]
fn rows_of(start: usize, columns: usize, mut into: &mut [f32], mut f: impl FnMut(usize, usize, &mut [f32])) {
    let mut at = start;
    while !into.is_empty() {
        let (row, column) = (at / columns, at % columns);
        let (now, later) = into.split_at_mut(into.len().min(columns - column));
        at += now.len();
        f(row, column, now);
        into = later;
    }
}

/// All elements of a block as one, in lanes of fixed number.
#[inline(always)]
fn total(op: Reduction, values: &[f32]) -> f64 {
    let mut lanes = [op.start(); LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    match op {
        Reduction::Sum => {
            for values in whole {
                lanes.iter_mut().zip(values).for_each(|(lane, x)| Reduction::Sum.add(lane, *x));
            }
        }
        Reduction::Maximum => {
            for values in whole {
                lanes.iter_mut().zip(values).for_each(|(lane, x)| Reduction::Maximum.add(lane, *x));
            }
        }
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, x)| op.add(lane, *x));
    let mut total = op.start();
    lanes.iter().for_each(|lane| op.merge(&mut total, *lane));
    total
}

#[inline(always)]
fn map(a: Operand, into: &mut [f32], f: impl Fn(f32) -> f32) {
    match a {
        Operand::Many(a) => into.iter_mut().zip(a).for_each(|(into, a)| *into = f(*a)),
        Operand::One(a) => into.fill(f(a)),
    }
}

#[inline(always)]
fn map2(a: Operand, b: Operand, into: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    match (a, b) {
        (Operand::Many(a), Operand::Many(b)) => {
            into.iter_mut().zip(a).zip(b).for_each(|((into, a), b)| *into = f(*a, *b));
        }
        (Operand::Many(a), Operand::One(b)) => into.iter_mut().zip(a).for_each(|(into, a)| *into = f(*a, b)),
        (Operand::One(a), Operand::Many(b)) => into.iter_mut().zip(b).for_each(|(into, b)| *into = f(a, *b)),
        (Operand::One(a), Operand::One(b)) => into.fill(f(a, b)),
    }
}

/// One loop per operation: the choice is made once a block.
#[inline(always)]
fn unary(op: Unary, a: Operand, into: &mut [f32]) {
    macro_rules! each {
        ($($op:ident),*) => {
            match op {
                $(Unary::$op => map(a, into, |a| scalar_unary(Unary::$op, a)),)*
            }
        };
    }
    each!(Negate, Absolute, Sign, Sqrt, Exp, Ln, RoundBf16);
}

#[inline(always)]
fn binary(op: Binary, a: Operand, b: Operand, into: &mut [f32]) {
    macro_rules! each {
        ($($op:ident),*) => {
            match op {
                $(Binary::$op => map2(a, b, into, |a, b| scalar_binary(Binary::$op, a, b)),)*
            }
        };
    }
    each!(Add, Subtract, Multiply, Divide, Minimum, Maximum, Power, Less);
}
