//! From the planner's passes to kernels: a stream becomes one kernel for all
//! that it writes, and one per reduction, which computes the chain before
//! it anew.
//!
//! A device binds a few buffers a kernel. A chain that needs more has parts of
//! it computed before, into buffers of their own.

use finetuned_plugin_api::program::{Axis, Binary, Program, Reduction, StateType, Unary, ValueId};

use super::code::{Code, Sink, Spread, Step, head};
use crate::ops::program::plan::{Action, Memory, Pass as Planned, Plan, Scalar, Source, Stream};

/// A chain over a matrix, and the memory that its buffers are.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    pub rows: usize,
    pub columns: usize,
    pub code: Code,
    pub places: Vec<Memory>,
}

/// What is launched.
#[derive(Debug, Clone)]
pub(super) enum Pass {
    /// One kernel that writes its sinks; buffers among them are made new.
    Chain(Chain),
    /// Step `of` of a chain without sinks.
    Reduce { chain: Chain, of: usize, op: Reduction, axis: Axis, into: usize },
    /// `into` = a · b; the shapes are those of a (m, k) and b (k, n) as used.
    MatMul { a: (Memory, bool), b: (Memory, bool), size: (usize, usize, usize), into: usize },
    /// `from` is (rows, columns).
    Transpose { from: Memory, rows: usize, columns: usize, into: usize },
}

/// A program, ready to launch.
#[derive(Debug, Clone)]
pub(super) struct Lowered {
    pub passes: Vec<Pass>,
    /// How many buffers the passes name.
    pub buffers: usize,
    /// The words of the table before the uniform values, and these.
    pub head: Vec<u32>,
    pub uniforms: Vec<ValueId>,
}

/// The least number of buffers that any operation can be split into: three
/// operands and a result.
pub(super) const LEAST_BUFFERS: usize = 4;

impl Lowered {
    /// For kernels that bind at most `most` buffers, [`LEAST_BUFFERS`] or more.
    pub(super) fn new(program: &Program, most: usize) -> Lowered {
        let plan = Plan::new(program);
        let head = head(program.states().iter().any(|state| state.kind != StateType::F32));
        let mut lower = Lower {
            program,
            most: most.max(LEAST_BUFFERS),
            first: head.len(),
            uniforms: Vec::new(),
            buffers: plan.buffers.len(),
            passes: Vec::new(),
        };
        for pass in &plan.passes {
            match pass {
                Planned::Stream(stream) => lower.stream(stream),
                Planned::MatMul { a, a_transposed, b, b_transposed, size, into } => lower.passes.push(Pass::MatMul {
                    a: (*a, *a_transposed),
                    b: (*b, *b_transposed),
                    size: *size,
                    into: *into,
                }),
                Planned::Transpose { from, rows, columns, into } => {
                    lower.passes.push(Pass::Transpose { from: *from, rows: *rows, columns: *columns, into: *into });
                }
                Planned::Commit(small) => lower.commit(small),
            }
        }
        let Lower { passes, buffers, uniforms, .. } = lower;
        Lowered { passes, buffers, head, uniforms }
    }

    /// Bytes of all buffers, each at its largest. They stay until the last pass;
    /// what a reduction makes on its way is far smaller.
    pub(super) fn scratch_bytes(&self) -> u64 {
        let mut largest = vec![0; self.buffers];
        let mut made = |index: usize, elements: usize| {
            if let Some(largest) = largest.get_mut(index) {
                *largest = elements.max(*largest);
            }
        };
        for pass in &self.passes {
            match pass {
                Pass::Chain(chain) => {
                    for (_, Sink::Float(buffer) | Sink::Bytes(buffer, _)) in &chain.code.sinks {
                        if let Some(Memory::Buffer(index)) = chain.places.get(*buffer) {
                            made(*index, chain.rows * chain.columns);
                        }
                    }
                }
                Pass::Reduce { chain, axis, into, .. } => made(
                    *into,
                    match axis {
                        Axis::All => 1,
                        Axis::EachRow => chain.rows,
                        Axis::EachColumn => chain.columns,
                    },
                ),
                Pass::MatMul { size: (m, _, n), into, .. } => made(*into, m * n),
                Pass::Transpose { rows, columns, into, .. } => made(*into, rows * columns),
            }
        }
        4 * largest.iter().sum::<usize>() as u64
    }
}

/// A value of a stream; operands are earlier nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Table(usize),
    Read(Memory, Spread),
    Decode(Memory, bool),
    Unary(Unary, usize),
    Binary(Binary, usize, usize),
    Select(usize, usize, usize),
}

impl Node {
    fn operands(self) -> impl Iterator<Item = usize> {
        let operands = match self {
            Node::Table(_) | Node::Read(..) | Node::Decode(..) => [None; 3],
            Node::Unary(_, a) => [Some(a), None, None],
            Node::Binary(_, a, b) => [Some(a), Some(b), None],
            Node::Select(c, a, b) => [Some(c), Some(a), Some(b)],
        };
        operands.into_iter().flatten()
    }

    fn memory(self) -> Option<Memory> {
        match self {
            Node::Read(memory, _) | Node::Decode(memory, _) => Some(memory),
            _ => None,
        }
    }
}

/// The values of a stream.
struct Graph {
    rows: usize,
    columns: usize,
    nodes: Vec<Node>,
}

impl Graph {
    fn add(&mut self, node: Node) -> usize {
        let known = self.nodes.iter().position(|known| *known == node);
        known.unwrap_or_else(|| {
            self.nodes.push(node);
            self.nodes.len() - 1
        })
    }

    /// Which nodes the computation of `ends` needs.
    fn reached(&self, ends: &[usize]) -> Vec<bool> {
        let mut reached = vec![false; self.nodes.len()];
        ends.iter().for_each(|end| reached[*end] = true);
        for at in (0..self.nodes.len()).rev() {
            if reached[at] {
                self.nodes[at].operands().for_each(|operand| reached[operand] = true);
            }
        }
        reached
    }

    /// The memory that the computation of `ends` reads.
    fn reads(&self, ends: &[usize]) -> Vec<Memory> {
        let mut reads = Vec::new();
        for (node, reached) in self.nodes.iter().zip(self.reached(ends)) {
            if let Some(memory) = node.memory().filter(|memory| reached && !reads.contains(memory)) {
                reads.push(memory);
            }
        }
        reads
    }

    /// The kernel that computes `ends`, and the step of each.
    fn chain(&self, ends: &[usize]) -> (Chain, Vec<usize>) {
        let reached = self.reached(ends);
        let mut steps = Vec::new();
        let mut places: Vec<Memory> = Vec::new();
        let mut names = vec![0; self.nodes.len()];
        for (at, node) in self.nodes.iter().enumerate().filter(|(at, _)| reached[*at]) {
            let mut buffer = |memory: Memory| buffer_of(&mut places, memory);
            steps.push(match *node {
                Node::Table(place) => Step::Table(place),
                Node::Read(memory, spread) => Step::Read(buffer(memory), spread),
                Node::Decode(memory, signed) => Step::Decode(buffer(memory), signed),
                Node::Unary(op, a) => Step::Unary(op, names[a]),
                Node::Binary(op, a, b) => Step::Binary(op, names[a], names[b]),
                Node::Select(c, a, b) => Step::Select(names[c], names[a], names[b]),
            });
            names[at] = steps.len() - 1;
        }
        let chain = Chain { rows: self.rows, columns: self.columns, code: Code { steps, sinks: Vec::new() }, places };
        (chain, ends.iter().map(|end| names[*end]).collect())
    }
}

fn buffer_of(places: &mut Vec<Memory>, memory: Memory) -> usize {
    let known = places.iter().position(|known| *known == memory);
    known.unwrap_or_else(|| {
        places.push(memory);
        places.len() - 1
    })
}

struct Lower<'p> {
    program: &'p Program,
    /// Buffers that a kernel may bind.
    most: usize,
    /// Where the table's uniform values begin.
    first: usize,
    uniforms: Vec<ValueId>,
    buffers: usize,
    passes: Vec<Pass>,
}

impl Lower<'_> {
    fn uniform(&mut self, id: ValueId) -> Node {
        let known = self.uniforms.iter().position(|known| *known == id);
        Node::Table(
            self.first
                + known.unwrap_or_else(|| {
                    self.uniforms.push(id);
                    self.uniforms.len() - 1
                }),
        )
    }

    fn new_buffer(&mut self) -> usize {
        self.buffers += 1;
        self.buffers - 1
    }

    fn stream(&mut self, stream: &Stream) {
        let mut graph = Graph { rows: stream.rows, columns: stream.columns, nodes: Vec::new() };
        let mut registers = vec![0; stream.registers];
        for (register, action) in &stream.actions {
            let mut node = |source| self.source(&mut graph, stream, &registers, source);
            let new = match *action {
                Action::Copy(a) => {
                    registers[*register] = node(a);
                    continue;
                }
                Action::Unary(op, a) => Node::Unary(op, node(a)),
                Action::Binary(op, a, b) => Node::Binary(op, node(a), node(b)),
                Action::Select(c, a, b) => Node::Select(node(c), node(a), node(b)),
                Action::Load(state) => {
                    let signed = self.program.states()[state].kind == StateType::BlockwiseU8 { signed: true };
                    Node::Decode(Memory::State(state), signed)
                }
                Action::RepeatRow(memory) => Node::Read(memory, Spread::Row),
                Action::RepeatColumns(memory) => Node::Read(memory, Spread::Column),
            };
            registers[*register] = graph.add(new);
        }
        for sum in &stream.sums {
            let of = self.source(&mut graph, stream, &registers, sum.of);
            self.fit(&mut graph, of, self.most - 1);
            let (chain, ends) = graph.chain(&[of]);
            self.passes.push(Pass::Reduce { chain, of: ends[0], op: sum.op, axis: sum.axis, into: sum.into });
        }
        let mut outputs: Vec<(usize, Memory)> = Vec::new();
        for (from, into) in &stream.stores {
            outputs.push((self.source(&mut graph, stream, &registers, *from), Memory::Buffer(*into)));
        }
        if let Some(from) = stream.parameter {
            outputs.push((self.source(&mut graph, stream, &registers, from), Memory::Parameter));
        }
        for (from, state) in &stream.states {
            outputs.push((self.source(&mut graph, stream, &registers, *from), Memory::State(*state)));
        }
        self.write(&mut graph, outputs);
    }

    fn source(&mut self, graph: &mut Graph, stream: &Stream, registers: &[usize], source: Source) -> usize {
        let node = match source {
            Source::Register(register) => return registers[register],
            Source::Memory(memory) => Node::Read(memory, Spread::Whole),
            Source::Scalar(index) => match stream.scalars[index] {
                Scalar::Uniform(id) => self.uniform(id),
                Scalar::Memory(memory) => Node::Read(memory, Spread::One),
            },
        };
        graph.add(node)
    }

    /// Computes parts of `end` before, so that it reads at most `most` buffers.
    fn fit(&mut self, graph: &mut Graph, end: usize, most: usize) {
        while graph.reads(&[end]).len() > most {
            let parts = graph.nodes[end].operands().filter(|operand| graph.nodes[*operand].memory().is_none());
            // Three operands that are memory fit, so one is left that is not.
            let Some(part) = parts.max_by_key(|part| graph.reads(&[*part]).len()) else { return };
            self.fit(graph, part, self.most - 1);
            let into = Memory::Buffer(self.new_buffer());
            self.kernel(graph, &[(part, into)]);
            graph.nodes[part] = Node::Read(into, Spread::Whole);
        }
    }

    /// Writes the outputs of a stream, in one kernel where its buffers suffice.
    fn write(&mut self, graph: &mut Graph, outputs: Vec<(usize, Memory)>) {
        if outputs.is_empty() {
            return;
        }
        if self.bound(graph, &outputs) <= self.most {
            self.kernel(graph, &outputs);
            return;
        }
        // Several kernels: what they read must not be overwritten by one of
        // them, so that new values of the parameter and the states wait.
        let mut late = Vec::new();
        let mut group: Vec<(usize, Memory)> = Vec::new();
        for (end, into) in outputs {
            let now = match into {
                Memory::Buffer(_) => into,
                _ => Memory::Buffer(self.new_buffer()),
            };
            if now != into {
                late.push((now, into));
            }
            self.fit(graph, end, self.most - 1);
            group.push((end, now));
            if self.bound(graph, &group) > self.most {
                let last = group.split_off(group.len() - 1);
                self.kernel(graph, &group);
                group = last;
            }
        }
        self.kernel(graph, &group);
        for (from, into) in late {
            self.copy(graph.rows, graph.columns, from, into);
        }
    }

    /// Buffers that a kernel of these outputs binds.
    fn bound(&self, graph: &Graph, outputs: &[(usize, Memory)]) -> usize {
        let ends: Vec<usize> = outputs.iter().map(|(end, _)| *end).collect();
        let mut places = graph.reads(&ends);
        outputs.iter().for_each(|(_, into)| {
            buffer_of(&mut places, *into);
        });
        places.len()
    }

    fn kernel(&mut self, graph: &Graph, outputs: &[(usize, Memory)]) {
        let ends: Vec<usize> = outputs.iter().map(|(end, _)| *end).collect();
        let (mut chain, ends) = graph.chain(&ends);
        for (end, (_, into)) in ends.iter().zip(outputs) {
            let buffer = buffer_of(&mut chain.places, *into);
            let sink = match into {
                Memory::State(state) => match self.program.states()[*state].kind {
                    StateType::F32 => Sink::Float(buffer),
                    StateType::BlockwiseU8 { signed } => Sink::Bytes(buffer, signed),
                },
                _ => Sink::Float(buffer),
            };
            chain.code.sinks.push((*end, sink));
        }
        self.passes.push(Pass::Chain(chain));
    }

    fn copy(&mut self, rows: usize, columns: usize, from: Memory, into: Memory) {
        let graph = Graph { rows, columns, nodes: vec![Node::Read(from, Spread::Whole)] };
        self.kernel(&graph, &[(0, into)]);
    }

    /// States of another shape than the parameter's: what lies in a state is
    /// set aside before another takes its place.
    fn commit(&mut self, small: &[(Scalar, usize)]) {
        let mut late = Vec::new();
        for (from, state) in small {
            let shape = &self.program.states()[*state];
            let (rows, columns) = (shape.rows, shape.columns);
            let node = match *from {
                Scalar::Uniform(id) => self.uniform(id),
                Scalar::Memory(memory @ Memory::Buffer(_)) => Node::Read(memory, Spread::Whole),
                Scalar::Memory(memory) => {
                    let aside = Memory::Buffer(self.new_buffer());
                    self.copy(rows, columns, memory, aside);
                    Node::Read(aside, Spread::Whole)
                }
            };
            late.push((Graph { rows, columns, nodes: vec![node] }, *state));
        }
        for (graph, state) in late {
            self.kernel(&graph, &[(0, Memory::State(state))]);
        }
    }
}
