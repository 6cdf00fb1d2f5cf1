//! Launching a program's kernels, in the plan's order, on the one queue.

use cubecl::CubeDim;
use cubecl::prelude::{BufferArg, SequenceArg};
use finetuned_plugin_api::program::{Axis, Reduction};

use super::code::{Code, Sink, Spread, Step};
use super::kernels::{
    HEIGHT, PIECE, TILE, UNITS, chain_kernel, reduce_columns_kernel, reduce_lines_kernel, transpose_kernel,
};
use super::lower::{Chain, Pass};
use super::state::GpuState;
use crate::error::{Result, TensorError};
use crate::gpu::Gpu;
use crate::gpu::launch::{self, grid};
use crate::ops::matmul::kernel::{Operand, product_f32};
use crate::ops::program::OP;
use crate::ops::program::plan::Memory;
use crate::tensor::Tensor;

// A cube of one unit an element is a block of an 8-bit state.
const _: () = assert!(launch::UNITS as usize == UNITS);

type Buffers = SequenceArg<Box<[u32]>>;

/// A step under way.
pub(super) struct Run<'a> {
    pub gpu: &'a Gpu,
    pub parameter: &'a mut Tensor,
    pub gradient: &'a Tensor,
    pub states: Vec<&'a mut GpuState>,
    /// Each is made by the pass that writes it.
    pub buffers: Vec<Option<Tensor>>,
    pub table: Tensor,
}

impl Run<'_> {
    pub(super) fn passes(&mut self, passes: &[Pass]) -> Result<()> {
        passes.iter().try_for_each(|pass| match pass {
            Pass::Chain(chain) => self.chain(chain),
            Pass::Reduce { chain, of, op, axis, into } => self.reduce(chain, *of, *op, *axis, *into),
            Pass::MatMul { a, b, size: (m, k, n), into } => {
                let mut out = self.make(*into, &[*m, *n])?;
                let a = (self.matrix(a.0, *m, *k, a.1)?, a.1);
                let b = (self.matrix(b.0, *k, *n, b.1)?, b.1);
                let operand = |(tensor, transpose)| Operand { tensor, transpose };
                product_f32(self.gpu, OP, operand((&a.0, a.1)), operand((&b.0, b.1)), &mut out)?;
                self.buffers[*into] = Some(out);
                Ok(())
            }
            Pass::Transpose { from, rows, columns, into } => {
                let mut out = self.make(*into, &[*columns, *rows])?;
                let x = self.gpu.input_f32(OP, self.tensor(*from)?)?;
                let tiles = rows.div_ceil(TILE) * columns.div_ceil(TILE);
                let (count, dim) = (grid(tiles), CubeDim::new_1d((TILE * TILE) as u32));
                let y = self.gpu.output_f32(OP, &mut out)?;
                transpose_kernel::launch(self.gpu.client(), count, dim, x, y, *rows, *columns);
                self.buffers[*into] = Some(out);
                Ok(())
            }
        })
    }

    /// A new tensor for a buffer, whose former one goes first.
    fn make(&mut self, buffer: usize, shape: &[usize]) -> Result<Tensor> {
        self.buffers[buffer] = None;
        self.gpu.empty_f32(OP, shape)
    }

    fn tensor(&self, memory: Memory) -> Result<&Tensor> {
        match memory {
            Memory::Parameter => Ok(self.parameter),
            Memory::Gradient => Ok(self.gradient),
            Memory::State(index) => Ok(&self.states[index].tensor),
            Memory::Buffer(index) => self.buffers[index].as_ref().ok_or_else(|| unwritten(index)),
        }
    }

    fn tensor_mut(&mut self, memory: Memory) -> Result<&mut Tensor> {
        match memory {
            Memory::Parameter => Ok(self.parameter),
            // No pass writes the gradient.
            Memory::Gradient => Err(TensorError::Shared { op: OP }),
            Memory::State(index) => Ok(&mut self.states[index].tensor),
            Memory::Buffer(index) => self.buffers[index].as_mut().ok_or_else(|| unwritten(index)),
        }
    }

    /// A matrix (rows, columns) as a product uses it, in the shape in which it
    /// lies.
    fn matrix(&self, memory: Memory, rows: usize, columns: usize, transposed: bool) -> Result<Tensor> {
        self.tensor(memory)?.reshape(&if transposed { [columns, rows] } else { [rows, columns] })
    }

    fn table(&self) -> Result<BufferArg> {
        self.gpu.input(OP, &self.table, self.table.dtype())
    }

    fn read(&self, memory: Memory) -> Result<BufferArg> {
        let tensor = self.tensor(memory)?;
        self.gpu.input(OP, tensor, tensor.dtype())
    }

    fn chain(&mut self, chain: &Chain) -> Result<()> {
        let mut written = vec![false; chain.places.len()];
        for (_, sink) in &chain.code.sinks {
            let (Sink::Float(buffer) | Sink::Bytes(buffer, _)) = *sink;
            written[buffer] = true;
            if let Memory::Buffer(index) = chain.places[buffer] {
                self.buffers[index] = Some(self.make(index, &[chain.rows, chain.columns])?);
            }
        }
        let mut buffers = Buffers::new();
        for (memory, written) in chain.places.iter().zip(written) {
            buffers.push(if written {
                let gpu = self.gpu;
                let tensor = self.tensor_mut(*memory)?;
                let dtype = tensor.dtype();
                gpu.output(OP, tensor, dtype)?
            } else {
                self.read(*memory)?
            });
        }
        let (count, dim) = self.gpu.elementwise(chain.rows * chain.columns);
        let (rows, columns, code) = (chain.rows, chain.columns, chain.code.clone());
        chain_kernel::launch(self.gpu.client(), count, dim, self.table()?, buffers, rows, columns, code);
        Ok(())
    }

    fn reduce(&mut self, chain: &Chain, of: usize, op: Reduction, axis: Axis, into: usize) -> Result<()> {
        let (rows, columns) = (chain.rows, chain.columns);
        let shape = match axis {
            Axis::All => [1, 1],
            Axis::EachRow => [rows, 1],
            Axis::EachColumn => [1, columns],
        };
        self.buffers[into] = None;
        let buffers = chain.places.iter().map(|memory| self.read(*memory)).collect::<Result<Buffers>>()?;
        // One column is one line, whichever way it lies.
        let down = axis == Axis::EachColumn && columns > 1;
        let line = if axis == Axis::EachRow { columns } else { rows * columns };
        let first = Part { rows, columns, line, code: chain.code.clone(), of, op };
        let mut out = self.part(down, &first, buffers)?;
        // What is left of each line, or of each column, until that is one number.
        while out.len() > shape[0] * shape[1] {
            let [rows, columns] = [out.rows(), out.columns()];
            let code = Code { steps: vec![Step::Read(0, Spread::Whole)], sinks: Vec::new() };
            let next = Part { rows, columns, line: columns, code, of: 0, op };
            let buffers = [self.gpu.input(OP, &out, out.dtype())?].into();
            out = self.part(down, &next, buffers)?;
        }
        self.buffers[into] = Some(out.into_shape(&shape)?);
        Ok(())
    }

    fn part(&self, down: bool, part: &Part, buffers: Buffers) -> Result<Tensor> {
        let (gpu, table) = (self.gpu, self.table()?);
        let Part { rows, columns, line, code, of, op } = part.clone();
        if down {
            let mut out = gpu.empty_f32(OP, &[rows.div_ceil(HEIGHT), columns])?;
            let (count, dim) = gpu.elementwise(out.len());
            let into = gpu.output_f32(OP, &mut out)?;
            reduce_columns_kernel::launch(gpu.client(), count, dim, table, buffers, into, rows, columns, code, of, op);
            return Ok(out);
        }
        let pieces = line.div_ceil(PIECE);
        let mut out = gpu.empty_f32(OP, &[rows * columns / line, pieces])?;
        let (count, dim, units) = gpu.by_row(out.len(), line.min(PIECE));
        let into = gpu.output_f32(OP, &mut out)?;
        reduce_lines_kernel::launch(
            gpu.client(),
            count,
            dim,
            table,
            buffers,
            into,
            rows,
            columns,
            line,
            pieces,
            code,
            of,
            op,
            units,
        );
        Ok(out)
    }
}

/// One launch of a reduction.
#[derive(Clone)]
struct Part {
    rows: usize,
    columns: usize,
    /// Elements of a line.
    line: usize,
    code: Code,
    of: usize,
    op: Reduction,
}

fn unwritten(index: usize) -> TensorError {
    TensorError::Failed { op: OP, reason: format!("buffer {index} is read before it is written") }
}
