//! Few buffers and few registers: what is no longer read gives its place up.

use super::{Action, Memory, Pass, Plan, Scalar, Source, Stream};

/// Gives values whose lives do not overlap the same buffer.
pub(super) fn buffers(mut passes: Vec<Pass>, sizes: &[usize]) -> Plan {
    let mut last = vec![0; sizes.len()];
    for (at, pass) in passes.iter_mut().enumerate() {
        each_buffer(pass, &mut |buffer, _| last[*buffer] = at);
    }
    let mut buffers: Vec<usize> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut given: Vec<Option<usize>> = vec![None; sizes.len()];
    for (at, pass) in passes.iter_mut().enumerate() {
        let mut over = Vec::new();
        each_buffer(pass, &mut |buffer, _| {
            let value = *buffer;
            let size = sizes[value];
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

/// Every buffer that a pass names; true if it is written.
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

/// Renumbers the registers so that few are used: all of them together should
/// fit the first cache.
pub(super) fn registers(stream: &mut Stream) {
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
