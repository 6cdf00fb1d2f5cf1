//! Which passes, in which order, and what each reads and computes.

use finetuned_plugin_api::program::{Instruction, Program, StateType, ValueId, ValueShape};

use super::share::registers;
use super::{Action, MOST_SINKS, Memory, Pass, Scalar, Source, Stream, Sum};

/// The passes of a program, with a buffer for every value that has one, and
/// the elements of each.
pub(super) fn passes(program: &Program) -> (Vec<Pass>, Vec<usize>) {
    let known = vec![Known::default(); program.code().len()];
    let mut planner = Planner { program, known, held: Vec::new() };
    planner.mark_needed();
    planner.set_levels();
    let passes = planner.passes();
    let sizes = planner.held.iter().map(|id| program.shape(*id).elements()).collect();
    (passes, sizes)
}

/// What is known of each value while planning.
#[derive(Clone, Copy, Default)]
struct Known {
    needed: bool,
    level: usize,
    /// Must be whole in memory.
    kept: bool,
}

struct Planner<'p> {
    program: &'p Program,
    known: Vec<Known>,
    /// The value that each buffer-to-be holds; buffers are shared out later.
    held: Vec<ValueId>,
}

fn same(a: ValueShape, b: ValueShape) -> bool {
    (a.rows, a.columns) == (b.rows, b.columns)
}

impl Planner<'_> {
    fn instruction(&self, id: ValueId) -> Instruction {
        self.program.code()[id.index()]
    }

    fn shape(&self, id: ValueId) -> ValueShape {
        self.program.shape(id)
    }

    /// The parameter and the states of its shape, which the last stream writes:
    /// (place of the state or `None`, new value).
    fn full_outputs(&self) -> Vec<(Option<usize>, ValueId)> {
        let states = self.program.updates().iter().enumerate();
        let states = states.filter_map(|(index, update)| update.map(|update| (Some(index), update)));
        let full = states.filter(|(_, update)| self.is_full(*update));
        std::iter::once((None, self.program.parameter())).chain(full).collect()
    }

    fn is_full(&self, id: ValueId) -> bool {
        let shape = self.shape(id);
        (shape.rows, shape.columns) == (self.program.rows(), self.program.columns())
    }

    fn small_outputs(&self) -> Vec<(usize, ValueId)> {
        let states = self.program.updates().iter().enumerate();
        let states = states.filter_map(|(index, update)| update.map(|update| (index, update)));
        states.filter(|(_, update)| !self.is_full(*update)).collect()
    }

    fn mark_needed(&mut self) {
        let mut open: Vec<ValueId> = self.program.updates().iter().flatten().copied().collect();
        open.push(self.program.parameter());
        while let Some(id) = open.pop() {
            if !self.known[id.index()].needed {
                self.known[id.index()].needed = true;
                // A uniform value is computed apart, operands and all.
                if !self.shape(id).uniform {
                    open.extend(self.instruction(id).operands());
                }
            }
        }
    }

    /// Memory that holds the value without any pass.
    fn input(&self, id: ValueId) -> Option<Memory> {
        match self.instruction(id) {
            Instruction::Parameter => Some(Memory::Parameter),
            Instruction::Gradient => Some(Memory::Gradient),
            Instruction::State(index) if self.program.states()[index as usize].kind == StateType::F32 => {
                Some(Memory::State(index as usize))
            }
            _ => None,
        }
    }

    fn streams(&self, id: ValueId) -> bool {
        matches!(
            self.instruction(id),
            Instruction::State(_) | Instruction::Unary(..) | Instruction::Binary(..) | Instruction::Select(..)
        )
    }

    /// The level from which the whole value is in memory; asks for that.
    fn available(&mut self, id: ValueId) -> usize {
        let level = self.known[id.index()].level;
        if self.input(id).is_some() {
            return 0;
        }
        if self.streams(id) || self.shape(id).uniform {
            self.known[id.index()].kept = true;
            return level + 1;
        }
        level
    }

    fn set_levels(&mut self) {
        for index in 0..self.known.len() {
            let id = ValueId(index as u32);
            if !self.known[index].needed || self.shape(id).uniform {
                continue;
            }
            let instruction = self.instruction(id);
            let mut level = 0;
            for operand in instruction.operands() {
                let streamed = same(self.shape(operand), self.shape(id)) && self.streams(id);
                let at = match instruction {
                    _ if self.shape(operand).uniform && self.streams(id) => 0,
                    Instruction::Reduce(..) => self.known[operand.index()].level + 1,
                    _ if streamed => self.known[operand.index()].level,
                    _ => self.available(operand),
                };
                level = level.max(at);
            }
            self.known[index].level = level;
        }
        // A small state's new value waits in memory until all reads are done.
        for (_, id) in self.small_outputs() {
            if !self.shape(id).uniform {
                self.available(id);
            }
        }
    }

    /// The memory of a value that has one.
    fn memory(&mut self, id: ValueId) -> Memory {
        if let Some(input) = self.input(id) {
            return input;
        }
        let place = self.held.iter().position(|held| *held == id);
        Memory::Buffer(place.unwrap_or_else(|| {
            self.held.push(id);
            self.held.len() - 1
        }))
    }

    fn buffer(&mut self, id: ValueId) -> usize {
        match self.memory(id) {
            Memory::Buffer(place) => place,
            // Only values that a pass makes are given buffers.
            Memory::Parameter | Memory::Gradient | Memory::State(_) => unreachable!("an input needs no buffer"),
        }
    }

    fn passes(&mut self) -> Vec<Pass> {
        let needed: Vec<ValueId> =
            (0..self.known.len() as u32).map(ValueId).filter(|id| self.known[id.index()].needed).collect();
        let last = needed.iter().map(|id| self.known[id.index()].level + usize::from(self.known[id.index()].kept));
        let last = last.max().unwrap_or(0);
        let mut passes = Vec::new();
        for level in 0..=last {
            for id in &needed {
                if self.known[id.index()].level == level
                    && let Some(pass) = self.whole(*id)
                {
                    passes.push(pass);
                }
            }
            let ends = needed.iter().filter(|id| self.ends_at(**id, level)).copied().collect::<Vec<_>>();
            let mut open = ends;
            while let Some(first) = open.first().copied() {
                let shape = self.stream_shape(first);
                let (now, later): (Vec<_>, Vec<_>) =
                    open.into_iter().partition(|id| same(self.stream_shape(*id), shape));
                open = later;
                for group in now.chunks(MOST_SINKS) {
                    passes.push(Pass::Stream(self.stream(shape, level, group, &[])));
                }
            }
        }
        let outputs = self.full_outputs();
        let full = self.shape(self.program.parameter());
        passes.push(Pass::Stream(self.stream(full, last, &[], &outputs)));
        let mut small = Vec::new();
        for (state, id) in self.small_outputs() {
            let from = if self.shape(id).uniform { Scalar::Uniform(id) } else { Scalar::Memory(self.memory(id)) };
            small.push((from, state));
        }
        passes.push(Pass::Commit(small));
        passes
    }

    /// Whether a stream of this level ends in that value: it is kept, or it is
    /// the reduction of one.
    fn ends_at(&self, id: ValueId, level: usize) -> bool {
        let known = self.known[id.index()];
        if self.shape(id).uniform {
            // A uniform value that a product or a transpose reads.
            return known.kept && level == 0;
        }
        match self.instruction(id) {
            Instruction::Reduce(..) => known.level == level + 1,
            _ => known.kept && known.level == level && self.streams(id),
        }
    }

    fn stream_shape(&self, id: ValueId) -> ValueShape {
        match self.instruction(id) {
            Instruction::Reduce(_, _, of) if !self.shape(id).uniform => self.shape(of),
            _ => self.shape(id),
        }
    }

    /// A matrix product or a transpose.
    fn whole(&mut self, id: ValueId) -> Option<Pass> {
        if self.shape(id).uniform {
            return None;
        }
        match self.instruction(id) {
            Instruction::MatMul(a, b) => {
                let size = (self.shape(a).rows, self.shape(a).columns, self.shape(b).columns);
                let (a, a_transposed) = self.product_operand(a);
                let (b, b_transposed) = self.product_operand(b);
                let into = self.buffer(id);
                Some(Pass::MatMul { a, a_transposed, b, b_transposed, size, into })
            }
            Instruction::Transpose(of) if self.transpose_is_read(id) => {
                let shape = self.shape(of);
                let from = self.memory(of);
                let into = self.buffer(id);
                Some(Pass::Transpose { from, rows: shape.rows, columns: shape.columns, into })
            }
            _ => None,
        }
    }

    /// A product reads a transposed matrix where it lies.
    fn product_operand(&mut self, id: ValueId) -> (Memory, bool) {
        match self.instruction(id) {
            Instruction::Transpose(of) if !self.shape(id).uniform => (self.memory(of), true),
            _ => (self.memory(id), false),
        }
    }

    /// Whether anything but a product reads it.
    fn transpose_is_read(&self, id: ValueId) -> bool {
        let code = self.program.code().iter().zip(&self.known);
        let read = code
            .filter(|(instruction, known)| known.needed && !matches!(instruction, Instruction::MatMul(..)))
            .any(|(instruction, _)| instruction.operands().any(|operand| operand == id));
        read || self.program.parameter() == id || self.program.updates().contains(&Some(id))
    }

    /// A stream of this shape that ends in `ends`, or writes `outputs`.
    fn stream(
        &mut self,
        shape: ValueShape,
        level: usize,
        ends: &[ValueId],
        outputs: &[(Option<usize>, ValueId)],
    ) -> Stream {
        let mut writer = Writer {
            stream: Stream { rows: shape.rows, columns: shape.columns, ..Stream::default() },
            placed: vec![None; self.known.len()],
            level,
        };
        for end in ends {
            match self.instruction(*end) {
                Instruction::Reduce(op, axis, of) if !self.shape(*end).uniform => {
                    let of = self.place(&mut writer, of);
                    let into = self.buffer(*end);
                    writer.stream.sums.push(Sum { op, axis, of, into });
                }
                _ => {
                    let from = self.place_new(&mut writer, *end);
                    let into = self.buffer(*end);
                    writer.stream.stores.push((from, into));
                }
            }
        }
        for (state, id) in outputs {
            let mut from = self.place(&mut writer, *id);
            if matches!(from, Source::Memory(Memory::Parameter | Memory::State(_))) {
                from = writer.push(Action::Copy(from));
            }
            match state {
                None => writer.stream.parameter = Some(from),
                Some(state) => writer.stream.states.push((from, *state)),
            }
        }
        let eight_bit = |state: usize| self.program.states()[state].kind != StateType::F32;
        let mut stream = writer.stream;
        stream.blocked = stream.states.iter().any(|(_, state)| eight_bit(*state))
            || stream.actions.iter().any(|(_, action)| matches!(action, Action::Load(_)));
        registers(&mut stream);
        stream
    }

    /// The operand for a value inside a stream of its shape, or a smaller one.
    fn place(&mut self, writer: &mut Writer, id: ValueId) -> Source {
        if let Some(source) = writer.placed[id.index()] {
            return source;
        }
        let known = self.known[id.index()];
        let shape = self.shape(id);
        if shape.uniform {
            return writer.scalar(Scalar::Uniform(id));
        }
        let whole = self.input(id).is_some() || !self.streams(id) || (known.kept && known.level < writer.level);
        let stream = (writer.stream.rows, writer.stream.columns);
        let source = if (shape.rows, shape.columns) == stream {
            if whole { Source::Memory(self.memory(id)) } else { return self.place_new(writer, id) }
        } else {
            // A smaller operand is whole by then: its level came first.
            let memory = self.memory(id);
            match (shape.rows, shape.columns) {
                (1, 1) => writer.scalar(Scalar::Memory(memory)),
                (1, _) => writer.push(Action::RepeatColumns(memory)),
                _ => writer.push(Action::RepeatRow(memory)),
            }
        };
        writer.placed[id.index()] = Some(source);
        source
    }

    /// Computes a value here, even if it is to be kept.
    fn place_new(&mut self, writer: &mut Writer, id: ValueId) -> Source {
        if let Some(source) = writer.placed[id.index()] {
            return source;
        }
        if self.shape(id).uniform {
            return writer.scalar(Scalar::Uniform(id));
        }
        let action = match self.instruction(id) {
            Instruction::Unary(op, a) => Action::Unary(op, self.place(writer, a)),
            Instruction::Binary(op, a, b) => {
                let (a, b) = (self.place(writer, a), self.place(writer, b));
                // Both are single numbers in a stream of one element.
                let a = if matches!((a, b), (Source::Scalar(_), Source::Scalar(_))) { writer.vector(a) } else { a };
                Action::Binary(op, a, b)
            }
            Instruction::Select(c, a, b) => {
                let [c, a, b] = [c, a, b].map(|operand| {
                    let source = self.place(writer, operand);
                    writer.vector(source)
                });
                Action::Select(c, a, b)
            }
            Instruction::State(index) => match self.input(id) {
                Some(memory) => Action::Copy(Source::Memory(memory)),
                None => Action::Load(index as usize),
            },
            // Inputs and whole values are in memory already.
            _ => Action::Copy(Source::Memory(self.memory(id))),
        };
        let source = writer.push(action);
        writer.placed[id.index()] = Some(source);
        source
    }
}

/// A stream being written; each action has a register of its own until
/// [`registers`].
struct Writer {
    stream: Stream,
    placed: Vec<Option<Source>>,
    level: usize,
}

impl Writer {
    fn push(&mut self, action: Action) -> Source {
        let register = self.stream.registers;
        self.stream.registers += 1;
        self.stream.actions.push((register, action));
        Source::Register(register)
    }

    fn scalar(&mut self, scalar: Scalar) -> Source {
        let known = self.stream.scalars.iter().position(|known| *known == scalar);
        Source::Scalar(known.unwrap_or_else(|| {
            self.stream.scalars.push(scalar);
            self.stream.scalars.len() - 1
        }))
    }

    fn vector(&mut self, source: Source) -> Source {
        match source {
            Source::Scalar(_) => self.push(Action::Copy(source)),
            _ => source,
        }
    }
}
