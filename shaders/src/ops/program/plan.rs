//! From a program to passes over memory.
//!
//! A chain of elementwise operations is one *stream*: blocks of a few hundred
//! elements go through all of it while they lie in the first cache. What ends a
//! chain is a reduction, a matrix product, a transpose, or an operand that is
//! smaller than the chain (broadcast): its value must be whole in memory first.
//! A value that two passes need and that is not in memory is computed twice,
//! which costs less than writing and reading it.
//!
//! Every value has a *level*: how many such ends lie before it. Passes run
//! level by level; the last stream of the parameter's shape writes the new
//! parameter and states, after every read of the old ones.

use finetuned_plugin_api::program::{
    Axis, Binary, Instruction, Program, Reduction, StateType, Unary, ValueId, ValueShape,
};

/// Most destinations, and most reductions, of one stream.
pub(super) const MOST_SINKS: usize = 8;

/// Where a whole value lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    Parameter,
    Gradient,
    /// An f32 state.
    State(usize),
    /// A buffer of the scratch space.
    Buffer(usize),
}

/// An operand inside a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Register(usize),
    /// The same place in memory of the stream's shape.
    Memory(Memory),
    /// A number of [`Stream::scalars`].
    Scalar(usize),
}

/// A number that a stream repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scalar {
    Uniform(ValueId),
    /// The one element of a (1, 1) value.
    Memory(Memory),
}

/// What a stream does for each block.
#[derive(Debug, Clone, Copy)]
pub(super) enum Action {
    Unary(Unary, Source),
    Binary(Binary, Source, Source),
    /// All three are registers or memory.
    Select(Source, Source, Source),
    /// Reads an 8-bit state.
    Load(usize),
    /// Copies an operand: where a scalar must be a vector, or memory is about
    /// to be overwritten.
    Copy(Source),
    /// One number a row, repeated along it.
    RepeatRow(Memory),
    /// One row, repeated for each row.
    RepeatColumns(Memory),
}

/// A reduction at the end of a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sum {
    pub op: Reduction,
    pub axis: Axis,
    pub of: Source,
    /// The buffer of the result.
    pub into: usize,
}

/// One pass over memory of one shape.
#[derive(Debug, Clone, Default)]
pub(super) struct Stream {
    pub rows: usize,
    pub columns: usize,
    /// (register to write, what it does), in order.
    pub actions: Vec<(usize, Action)>,
    pub registers: usize,
    pub scalars: Vec<Scalar>,
    /// Whole values to keep: (operand, buffer).
    pub stores: Vec<(Source, usize)>,
    pub sums: Vec<Sum>,
    /// The last pass: what the parameter and the full-sized states become.
    pub parameter: Option<Source>,
    pub states: Vec<(Source, usize)>,
    /// Memory of the stream's shape that it reads, to be asked for ahead.
    pub reads: Vec<Memory>,
    /// Whether blocks must begin at an 8-bit state's block.
    pub blocked: bool,
}

/// A step of a plan.
#[derive(Debug, Clone)]
pub(super) enum Pass {
    Stream(Stream),
    /// `into` = a · b; the shapes are those of a (m, k) and b (k, n) as used.
    MatMul {
        a: Memory,
        a_transposed: bool,
        b: Memory,
        b_transposed: bool,
        size: (usize, usize, usize),
        into: usize,
    },
    /// `from` is (rows, columns).
    Transpose {
        from: Memory,
        rows: usize,
        columns: usize,
        into: usize,
    },
    /// States of another shape than the parameter's take their new values, all
    /// of which are read before the first is written.
    Commit(Vec<(Scalar, usize)>),
}

/// The passes of a program, and the buffers that they use.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub passes: Vec<Pass>,
    /// Elements of each buffer.
    pub buffers: Vec<usize>,
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

impl Plan {
    pub(super) fn new(program: &Program) -> Plan {
        let count = program.code().len();
        let mut planner = Planner { program, known: vec![Known::default(); count], held: Vec::new() };
        planner.mark_needed();
        planner.set_levels();
        let passes = planner.passes();
        planner.share_buffers(passes)
    }
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
        share_registers(&mut stream);
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

    /// Gives values whose lives do not overlap the same buffer.
    fn share_buffers(&self, mut passes: Vec<Pass>) -> Plan {
        let mut last = vec![0; self.held.len()];
        for (at, pass) in passes.iter_mut().enumerate() {
            each_buffer(pass, &mut |buffer, _| last[*buffer] = at);
        }
        let mut buffers: Vec<usize> = Vec::new();
        let mut free: Vec<usize> = Vec::new();
        let mut given: Vec<Option<usize>> = vec![None; self.held.len()];
        for (at, pass) in passes.iter_mut().enumerate() {
            let mut over = Vec::new();
            each_buffer(pass, &mut |buffer, _| {
                let value = *buffer;
                let size = self.shape(self.held[value]).elements();
                let slot = *given[value].get_or_insert_with(|| {
                    let best = (0..free.len()).min_by_key(|index| buffers[free[*index]].abs_diff(size));
                    match best {
                        Some(index) => free.swap_remove(index),
                        None => {
                            buffers.push(0);
                            buffers.len() - 1
                        }
                    }
                });
                buffers[slot] = buffers[slot].max(size);
                *buffer = slot;
                if last[value] == at && !over.contains(&slot) {
                    over.push(slot);
                }
            });
            free.extend(over);
        }
        for pass in &mut passes {
            if let Pass::Stream(stream) = pass {
                stream.reads = reads(stream);
            }
        }
        Plan { passes, buffers }
    }
}

/// Every buffer that a pass names; true where it is written.
fn each_buffer(pass: &mut Pass, f: &mut dyn FnMut(&mut usize, bool)) {
    fn memory(memory: &mut Memory, f: &mut dyn FnMut(&mut usize, bool)) {
        if let Memory::Buffer(buffer) = memory {
            f(buffer, false);
        }
    }
    fn source(source: &mut Source, f: &mut dyn FnMut(&mut usize, bool)) {
        if let Source::Memory(Memory::Buffer(buffer)) = source {
            f(buffer, false);
        }
    }
    match pass {
        Pass::Stream(stream) => {
            for (_, action) in &mut stream.actions {
                match action {
                    Action::Unary(_, a) | Action::Copy(a) => source(a, f),
                    Action::Binary(_, a, b) => {
                        source(a, f);
                        source(b, f);
                    }
                    Action::Select(a, b, c) => {
                        source(a, f);
                        source(b, f);
                        source(c, f);
                    }
                    Action::RepeatRow(from) | Action::RepeatColumns(from) => memory(from, f),
                    Action::Load(_) => {}
                }
            }
            for scalar in &mut stream.scalars {
                if let Scalar::Memory(from) = scalar {
                    memory(from, f);
                }
            }
            stream.stores.iter_mut().for_each(|(from, into)| {
                source(from, f);
                f(into, true);
            });
            stream.sums.iter_mut().for_each(|sum| {
                source(&mut sum.of, f);
                f(&mut sum.into, true);
            });
            stream.parameter.iter_mut().for_each(|from| source(from, f));
            stream.states.iter_mut().for_each(|(from, _)| source(from, f));
        }
        Pass::MatMul { a, b, into, .. } => {
            memory(a, f);
            memory(b, f);
            f(into, true);
        }
        Pass::Transpose { from, into, .. } => {
            memory(from, f);
            f(into, true);
        }
        Pass::Commit(small) => {
            for (from, _) in small {
                if let Scalar::Memory(from) = from {
                    memory(from, f);
                }
            }
        }
    }
}

/// Memory of the stream's shape that it reads, 8-bit states as states.
fn reads(stream: &Stream) -> Vec<Memory> {
    let actions = stream.actions.iter().flat_map(|(_, action)| match *action {
        Action::Load(state) => vec![Source::Memory(Memory::State(state))],
        _ => operands(action),
    });
    let ends = stream.stores.iter().map(|(from, _)| *from).chain(stream.sums.iter().map(|sum| sum.of));
    let ends = ends.chain(stream.parameter).chain(stream.states.iter().map(|(from, _)| *from));
    let mut reads = Vec::new();
    for source in actions.chain(ends) {
        if let Source::Memory(memory) = source
            && !reads.contains(&memory)
        {
            reads.push(memory);
        }
    }
    reads
}

fn operands(action: &Action) -> Vec<Source> {
    match *action {
        Action::Unary(_, a) | Action::Copy(a) => vec![a],
        Action::Binary(_, a, b) => vec![a, b],
        Action::Select(a, b, c) => vec![a, b, c],
        Action::Load(_) | Action::RepeatRow(_) | Action::RepeatColumns(_) => vec![],
    }
}

/// A stream being written; each action has a register of its own until
/// [`share_registers`].
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

/// Renumbers the registers so that few are used: all of them together should
/// fit the first cache.
fn share_registers(stream: &mut Stream) {
    let mut last = vec![0; stream.registers];
    for (at, (register, action)) in stream.actions.iter().enumerate() {
        last[*register] = at;
        for source in operands(action) {
            if let Source::Register(register) = source {
                last[register] = at;
            }
        }
    }
    let ends = stream.stores.iter().map(|(from, _)| from).chain(stream.sums.iter().map(|sum| &sum.of));
    let ends = ends.chain(&stream.parameter).chain(stream.states.iter().map(|(from, _)| from));
    for source in ends {
        if let Source::Register(register) = source {
            last[*register] = usize::MAX;
        }
    }
    let mut names = vec![0; stream.registers];
    let (mut free, mut used) = (Vec::new(), 0);
    let rename = |source: &mut Source, names: &[usize]| {
        if let Source::Register(register) = source {
            *register = names[*register];
        }
    };
    for (at, (register, action)) in stream.actions.iter_mut().enumerate() {
        // The result's register is chosen before its operands' are freed, so
        // that no action reads what it writes.
        let name = free.pop().unwrap_or_else(|| {
            used += 1;
            used - 1
        });
        let mut over: Vec<usize> = Vec::new();
        for source in operands(action) {
            if let Source::Register(operand) = source
                && last[operand] == at
                && !over.contains(&names[operand])
            {
                over.push(names[operand]);
            }
        }
        match action {
            Action::Unary(_, a) | Action::Copy(a) => rename(a, &names),
            Action::Binary(_, a, b) => {
                rename(a, &names);
                rename(b, &names);
            }
            Action::Select(a, b, c) => {
                rename(a, &names);
                rename(b, &names);
                rename(c, &names);
            }
            Action::Load(_) | Action::RepeatRow(_) | Action::RepeatColumns(_) => {}
        }
        free.extend(over);
        names[*register] = name;
        *register = name;
    }
    stream.registers = used;
    stream.stores.iter_mut().for_each(|(from, _)| rename(from, &names));
    stream.sums.iter_mut().for_each(|sum| rename(&mut sum.of, &names));
    stream.parameter.iter_mut().for_each(|from| rename(from, &names));
    stream.states.iter_mut().for_each(|(from, _)| rename(from, &names));
}
