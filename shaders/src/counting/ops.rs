//! The counting device as an [`Ops`]: the shape of each operation's result.

use finetuned_plugin_api::program::{Program, Scalars, StateBuffer};

use super::Counting;
use super::ledger::Counted;
use crate::error::{Result, shape_error};
use crate::ops::nf4::{Nf4Weight, Scales};
use crate::ops::{
    Activation, AttentionSpec, DeviceInfo, Head, Ops, ProgramState, Reading, RotaryTable, Segments, StateStorage,
    StatisticSet, TokenCoefficients, TokenStatistics, Weight, WeightKind, linear,
};
use crate::random::Key;
use crate::tensor::{DType, Tensor};

/// Multiplications and additions of causal attention: half of each document's square,
/// for the scores and for the mixture.
fn attention_flops(segments: &Segments, spec: &AttentionSpec) -> f64 {
    let width = (spec.heads * spec.head_dim) as f64;
    let pairs = |length: usize| {
        let window = spec.window.map_or(length, |window| window.min(length)) as f64;
        length as f64 * window - 0.5 * window * window
    };
    4.0 * width * segments.ranges().map(|range| pairs(range.len())).sum::<f64>()
}

fn dimensions(op: &'static str, x: &Tensor) -> Result<(usize, usize)> {
    match *x.shape() {
        [rows, columns] => Ok((rows, columns)),
        ref other => Err(shape_error(op, "a matrix", format!("{other:?}"))),
    }
}

impl Counting {
    fn nf4(&self, shape: &[usize], double_quant: bool) -> Result<Weight> {
        const OP: &str = "nf4";
        let elements: usize = shape.iter().product();
        let blocks = elements.div_ceil(64);
        let scales = match double_quant {
            false => Scales::Plain(self.f32(OP, &[blocks])?),
            true => Scales::Nested {
                codes: self.take(OP, &[blocks], DType::U8)?,
                absmax: self.f32(OP, &[blocks.div_ceil(256)])?,
                code: self.f32(OP, &[256])?,
                offset: 0.0,
            },
        };
        let packed = self.take(OP, &[elements.div_ceil(2)], DType::U8)?;
        Ok(Weight::Nf4(Nf4Weight { shape: shape.to_vec(), packed, scales }))
    }
}

impl Ops for Counting {
    fn info(&self) -> DeviceInfo {
        self.like.info()
    }

    fn zeros(&self, shape: &[usize]) -> Result<Tensor> {
        self.f32("zeros", shape)
    }

    fn upload(&self, shape: &[usize], _: &[f32]) -> Result<Tensor> {
        self.f32("upload", shape)
    }

    fn upload_u32(&self, shape: &[usize], _: &[u32]) -> Result<Tensor> {
        self.take("upload_u32", shape, DType::U32)
    }

    fn upload_bf16(&self, shape: &[usize], _: &[f32]) -> Result<Tensor> {
        self.take("upload_bf16", shape, DType::Bf16)
    }

    fn upload_nf4(&self, shape: &[usize], _: &[f32], double_quant: bool) -> Result<Weight> {
        self.nf4(shape, double_quant)
    }

    fn random_weight(&self, shape: &[usize], _: f32, _: Key, kind: WeightKind) -> Result<Weight> {
        const OP: &str = "random_weight";
        match kind {
            WeightKind::F32 => Ok(Weight::Dense(self.f32(OP, shape)?)),
            WeightKind::Bf16 => Ok(Weight::Dense(self.take(OP, shape, DType::Bf16)?)),
            WeightKind::Nf4 { double_quant } => self.nf4(shape, double_quant),
        }
    }

    /// No values.
    fn read(&self, _: &Tensor) -> Result<Vec<f32>> {
        Ok(Vec::new())
    }

    fn read_later(&self, _: &Tensor) -> Result<Reading<'_>> {
        Ok(Box::new(|| Ok(Vec::new())))
    }

    fn write(&self, _: &mut Tensor, _: &[f32]) -> Result<()> {
        Ok(())
    }

    fn copy(&self, x: &Tensor) -> Result<Tensor> {
        self.own("copy", x)?;
        self.take("copy", x.shape(), x.dtype())
    }

    fn read_weight(&self, _: &Weight) -> Result<Vec<f32>> {
        Ok(Vec::new())
    }

    fn allocated_bytes(&self) -> (u64, u64) {
        self.ledger.bytes()
    }

    fn reset_peak(&self) {
        self.ledger.reset_peak();
    }

    fn trim(&self) {}

    fn head_bytes(&self, rows: usize, vocabulary: usize, columns: usize) -> u64 {
        self.like.head_bytes(rows, vocabulary, columns)
    }

    fn unpacked_bytes(&self, outputs: usize, inputs: usize) -> u64 {
        self.like.unpacked_bytes(outputs, inputs)
    }

    fn index_bytes(&self, tokens: usize) -> u64 {
        self.like.index_bytes(tokens)
    }

    fn adds_apart(&self) -> bool {
        self.like.adds_apart()
    }

    fn tensor_bytes(&self, bytes: u64) -> u64 {
        self.like.tensor_bytes(bytes)
    }

    fn add_scaled(&self, y: &mut Tensor, x: &Tensor, _: f32) -> Result<()> {
        x.expect_shape("add_scaled", y.shape())
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        b.expect_shape("add", a.shape())?;
        self.f32("add", a.shape())
    }

    fn divide(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        b.expect_shape("divide", a.shape())?;
        self.f32("divide", a.shape())
    }

    fn scale(&self, _: &mut Tensor, _: f32) -> Result<()> {
        Ok(())
    }

    fn fill_zero(&self, _: &mut Tensor) -> Result<()> {
        Ok(())
    }

    fn scale_rows(&self, y: &mut Tensor, factors: &[f32]) -> Result<()> {
        if y.rows() == factors.len() {
            return Ok(());
        }
        Err(shape_error("scale_rows", format!("{} factors", y.rows()), factors.len().to_string()))
    }

    fn add_bias(&self, y: &mut Tensor, bias: &Tensor) -> Result<()> {
        bias.expect_shape("add_bias", &[y.columns()])
    }

    fn bias_backward(&self, dy: &Tensor, dbias: &mut Tensor) -> Result<()> {
        dbias.expect_shape("bias_backward", &[dy.columns()])
    }

    fn scale_columns(&self, x: &Tensor, g: &Tensor) -> Result<Tensor> {
        g.expect_shape("scale_columns", &[x.columns()])?;
        self.f32("scale_columns", x.shape())
    }

    fn column_dot(&self, a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<()> {
        b.expect_shape("column_dot", a.shape())?;
        out.expect_shape("column_dot", &[a.columns()])
    }

    fn sum_squares(&self, _: &[&Tensor]) -> Result<f64> {
        Ok(0.0)
    }

    fn gather_rows(&self, x: &Tensor, indices: &[u32]) -> Result<Tensor> {
        self.f32("gather_rows", &[indices.len(), x.columns()])
    }

    fn scatter_rows(&self, rows: usize, indices: &[u32], dy: &Tensor) -> Result<Tensor> {
        dy.expect_shape("scatter_rows", &[indices.len(), dy.columns()])?;
        self.f32("scatter_rows", &[rows, dy.columns()])
    }

    fn split_columns(&self, x: &Tensor, widths: &[usize]) -> Result<Vec<Tensor>> {
        x.expect_shape("split_columns", &[x.rows(), widths.iter().sum()])?;
        widths.iter().map(|width| self.f32("split_columns", &[x.rows(), *width])).collect()
    }

    fn join_columns(&self, parts: &[&Tensor]) -> Result<Tensor> {
        let rows = parts.first().map_or(0, |part| part.rows());
        self.f32("join_columns", &[rows, parts.iter().map(|part| part.columns()).sum()])
    }

    fn dropout(&self, x: &Tensor, _: f32, _: Key) -> Result<Tensor> {
        self.f32("dropout", x.shape())
    }

    fn embedding(&self, ids: &[u32], table: &Tensor, _: f32) -> Result<Tensor> {
        self.f32("embedding", &[ids.len(), table.columns()])
    }

    fn embedding_backward(&self, ids: &[u32], dy: &Tensor, _: f32, dtable: &mut Tensor) -> Result<()> {
        dy.expect_shape("embedding_backward", &[ids.len(), dtable.columns()])
    }

    fn rms_norm(&self, x: &Tensor, w: &Tensor, _: f32, _: f32) -> Result<(Tensor, Tensor)> {
        let groups = x.len().checked_div(w.len()).unwrap_or(0);
        Ok((self.f32("rms_norm", x.shape())?, self.f32("rms_norm", &[groups])?))
    }

    fn rms_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: f32,
        into: Option<Tensor>,
        _: Option<&mut Tensor>,
    ) -> Result<Tensor> {
        dy.expect_shape("rms_norm_backward", x.shape())?;
        self.accumulator("rms_norm_backward", x.shape(), into)
    }

    fn layer_norm(&self, x: &Tensor, w: &Tensor, _: &Tensor, _: f32) -> Result<(Tensor, Tensor)> {
        w.expect_shape("layer_norm", &[x.columns()])?;
        Ok((self.f32("layer_norm", x.shape())?, self.f32("layer_norm", &[x.rows(), 2])?))
    }

    fn layer_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        _: &Tensor,
        _: &Tensor,
        into: Option<Tensor>,
        _: Option<(&mut Tensor, &mut Tensor)>,
    ) -> Result<Tensor> {
        dy.expect_shape("layer_norm_backward", x.shape())?;
        self.accumulator("layer_norm_backward", x.shape(), into)
    }

    fn matmul(
        &self,
        a: &Tensor,
        transpose_a: bool,
        b: &Tensor,
        transpose_b: bool,
        _: f32,
        into: Option<Tensor>,
    ) -> Result<Tensor> {
        const OP: &str = "matmul";
        let turned = |(rows, columns): (usize, usize), turn: bool| if turn { (columns, rows) } else { (rows, columns) };
        let (m, k) = turned(dimensions(OP, a)?, transpose_a);
        let (inner, n) = turned(dimensions(OP, b)?, transpose_b);
        if k != inner {
            return Err(shape_error(OP, format!("{k} rows"), inner.to_string()));
        }
        self.product(OP, (m, k, n), into)
    }

    fn linear(&self, x: &Tensor, w: &Weight) -> Result<Tensor> {
        let (outputs, inputs) = linear::weight_shape("linear", w)?;
        self.own("linear", x)?;
        linear::check_columns("linear", x, inputs)?;
        let _unpacked = self.unpacked(w)?;
        self.product("linear", (x.rows(), inputs, outputs), None)
    }

    fn linear_backward(&self, dy: &Tensor, w: &Weight, into: Option<Tensor>) -> Result<Tensor> {
        let (outputs, inputs) = linear::weight_shape("linear_backward", w)?;
        linear::check_columns("linear_backward", dy, outputs)?;
        let _unpacked = self.unpacked(w)?;
        self.product("linear_backward", (dy.rows(), outputs, inputs), into)
    }

    fn linear_weight_backward(&self, dy: &Tensor, x: &Tensor, dw: &mut Tensor) -> Result<()> {
        const OP: &str = "linear_weight_backward";
        let (m, n) = (dy.columns(), x.columns());
        dw.expect_shape(OP, &[m, n])?;
        // The result is added to `dw`, by itself if the device adds afterwards.
        let apart = self.like.adds_apart();
        let _result = self.product(OP, (m, dy.rows(), n), (!apart).then(|| dw.clone()))?;
        Ok(())
    }

    fn dora_norm(&self, w: &Weight, a: &Tensor, b: &Tensor, _: f32) -> Result<Tensor> {
        let (outputs, inputs) = linear::weight_shape("dora_norm", w)?;
        let _unpacked = self.scratch(self.like.unpacked_bytes(outputs, inputs));
        self.add_flops(2.0 * a.rows() as f64 * outputs as f64 * inputs as f64);
        b.expect_shape("dora_norm", &[outputs, a.rows()])?;
        self.f32("dora_norm", &[outputs])
    }

    fn rotary(&self, x: &mut Tensor, positions: &[u32], _: &RotaryTable, _: usize, _: bool) -> Result<()> {
        x.expect_shape("rotary", &[positions.len(), x.columns()])
    }

    fn attention(
        &self,
        q: &Tensor,
        _: &Tensor,
        _: &Tensor,
        segments: &Segments,
        spec: &AttentionSpec,
    ) -> Result<(Tensor, Tensor)> {
        self.add_flops(attention_flops(segments, spec));
        Ok((self.f32("attention", q.shape())?, self.f32("attention", &[q.rows(), spec.heads])?))
    }

    fn attention_backward(
        &self,
        _: &Tensor,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        lse: &Tensor,
        segments: &Segments,
        spec: &AttentionSpec,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        const OP: &str = "attention_backward";
        // The scores again, and two products for each of theirs.
        self.add_flops(2.5 * attention_flops(segments, spec));
        let _sums = self.f32(OP, lse.shape())?;
        Ok((self.f32(OP, q.shape())?, self.f32(OP, k.shape())?, self.f32(OP, v.shape())?))
    }

    fn attention_cached(
        &self,
        q: &Tensor,
        _: &Tensor,
        _: &Tensor,
        length: usize,
        spec: &AttentionSpec,
    ) -> Result<Tensor> {
        self.add_flops(4.0 * (q.rows() * length * spec.heads * spec.head_dim) as f64);
        self.f32("attention_cached", q.shape())
    }

    fn write_rows(&self, _: &mut Tensor, _: usize, _: &Tensor) -> Result<()> {
        Ok(())
    }

    fn gated(&self, gate: &Tensor, up: &Tensor, _: Activation) -> Result<Tensor> {
        up.expect_shape("gated", gate.shape())?;
        self.f32("gated", gate.shape())
    }

    fn gated_backward(&self, dy: &Tensor, gate: &Tensor, _: &Tensor, _: Activation) -> Result<(Tensor, Tensor)> {
        dy.expect_shape("gated_backward", gate.shape())?;
        Ok((self.f32("gated_backward", gate.shape())?, self.f32("gated_backward", gate.shape())?))
    }

    fn activation(&self, x: &Tensor, _: Activation) -> Result<Tensor> {
        self.f32("activation", x.shape())
    }

    fn activation_backward(&self, dy: &Tensor, x: &Tensor, _: Activation) -> Result<Tensor> {
        dy.expect_shape("activation_backward", x.shape())?;
        self.f32("activation_backward", x.shape())
    }

    fn logits(&self, h: &Tensor, head: &Head) -> Result<Tensor> {
        let (vocabulary, columns) = linear::weight_shape("logits", head.weight)?;
        let _unpacked = self.unpacked(head.weight)?;
        self.product("logits", (h.rows(), columns, vocabulary), None)
    }

    fn token_logp(&self, h: &Tensor, head: &Head, targets: &[u32], want: StatisticSet) -> Result<TokenStatistics> {
        let (_held, flops) = self.head("token_logp", h, head, targets)?;
        self.add_flops(flops);
        Ok(Counting::statistics(targets.len(), want))
    }

    fn token_logp_backward(
        &self,
        h: &Tensor,
        head: &Head,
        targets: &[u32],
        _: &TokenCoefficients,
        dweight: Option<&mut Tensor>,
    ) -> Result<Tensor> {
        let (_held, flops) = self.head("token_logp_backward", h, head, targets)?;
        self.add_flops(flops * if dweight.is_some() { 3.0 } else { 2.0 });
        self.f32("token_logp_backward", h.shape())
    }

    fn token_logp_fused(
        &self,
        h: &Tensor,
        head: &Head,
        targets: &[u32],
        want: StatisticSet,
        _: &TokenCoefficients,
        dweight: Option<&mut Tensor>,
    ) -> Result<(TokenStatistics, Tensor)> {
        let (_held, flops) = self.head("token_logp_fused", h, head, targets)?;
        self.add_flops(flops * if dweight.is_some() { 3.0 } else { 2.0 });
        Ok((Counting::statistics(targets.len(), want), self.f32("token_logp_fused", h.shape())?))
    }

    fn program_states(&self, program: &Program, parameter: &Tensor) -> Result<Vec<ProgramState>> {
        if parameter.len() != program.elements() {
            let expected = format!("{} elements", program.elements());
            return Err(shape_error("program_states", expected, parameter.len().to_string()));
        }
        let state = |bytes: usize| ProgramState(StateStorage::Counted(Counted::new(bytes as u64, &self.ledger)));
        Ok(program.states().iter().map(|described| state(described.bytes())).collect())
    }

    /// No values.
    fn read_state(&self, _: &ProgramState) -> Result<StateBuffer> {
        Ok(StateBuffer::F32(Vec::new()))
    }

    fn write_state(&self, buffer: StateBuffer) -> Result<ProgramState> {
        let bytes = match &buffer {
            StateBuffer::F32(values) => 4 * values.len(),
            StateBuffer::BlockwiseU8 { codes, scales, .. } => codes.len() + 4 * scales.len(),
        };
        Ok(ProgramState(StateStorage::Counted(Counted::new(bytes as u64, &self.ledger))))
    }

    fn program_scratch_bytes(&self, programs: &[Program]) -> u64 {
        self.like.program_scratch_bytes(programs)
    }

    fn optimizer_step(
        &self,
        program: &Program,
        parameter: &mut Tensor,
        gradient: &Tensor,
        states: &mut [ProgramState],
        _: &Scalars,
    ) -> Result<()> {
        gradient.expect_shape("optimizer_step", parameter.shape())?;
        if !states.iter().all(|state| matches!(&state.0, StateStorage::Counted(counted) if self.owns(counted))) {
            return Err(self.elsewhere("optimizer_step"));
        }
        let _scratch = self.scratch(self.like.program_scratch_bytes(std::slice::from_ref(program)));
        Ok(())
    }
}
