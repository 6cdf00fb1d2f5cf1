//! The GPU as an [`Ops`]: each method goes to its operation's folder.

use finetuned_plugin_api::program::{Program, Scalars, StateBuffer};

use super::{Gpu, TensorCores};
use crate::error::Result;
use crate::ops::matmul::kernel::Operand;
use crate::ops::{
    Activation, AttentionSpec, DeviceInfo, Head, Ops, ProgramState, Reading, RotaryTable, Segments, StatisticSet,
    TokenCoefficients, TokenStatistics, Weight, WeightKind, attention, columns, dropout, elementwise, gated, gather,
    layer_norm, linear, matmul, nf4, program, random_weight, reduce, rms_norm, rotary, token_logp,
};
use crate::random::Key;
use crate::tensor::{DType, Tensor};

impl Ops for Gpu {
    fn info(&self) -> DeviceInfo {
        let facts = self.facts();
        DeviceInfo {
            name: facts.name.clone(),
            parallelism: 1,
            memory_bytes: facts.memory_bytes,
            shares_host_memory: facts.shares_host_memory(),
            product_rounding: facts.product_rounding(),
            on_host: false,
        }
    }

    fn zeros(&self, shape: &[usize]) -> Result<Tensor> {
        self.zeros_f32("zeros", shape)
    }

    fn upload(&self, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        self.upload_f32("upload", shape, values)
    }

    fn upload_u32(&self, shape: &[usize], values: &[u32]) -> Result<Tensor> {
        self.upload_bytes("upload_u32", shape, DType::U32, bytemuck::cast_slice(values))
    }

    fn upload_bf16(&self, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        self.upload_half(shape, values)
    }

    fn upload_nf4(&self, shape: &[usize], values: &[f32], double_quant: bool) -> Result<Weight> {
        Ok(Weight::Nf4(nf4::kernel::upload(self, shape, values, double_quant)?))
    }

    fn random_weight(&self, shape: &[usize], scale: f32, key: Key, kind: WeightKind) -> Result<Weight> {
        random_weight::kernel::random_weight(self, shape, scale, key, kind)
    }

    fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        self.read_values(x)
    }

    fn read_later(&self, x: &Tensor) -> Result<Reading<'_>> {
        self.read_f32_later("read_later", x)
    }

    fn write(&self, x: &mut Tensor, values: &[f32]) -> Result<()> {
        self.write_values(x, values)
    }

    fn copy(&self, x: &Tensor) -> Result<Tensor> {
        self.copy_tensor("copy", x)
    }

    fn read_weight(&self, w: &Weight) -> Result<Vec<f32>> {
        linear::kernel::read(self, w)
    }

    fn allocated_bytes(&self) -> (u64, u64) {
        self.pool.ledger.counts()
    }

    fn reset_peak(&self) {
        self.pool.ledger.reset_peak();
    }

    fn trim(&self) {
        self.trim_pool();
    }

    fn reserve(&self, bytes: u64) -> Result<()> {
        self.pool.reserve(bytes)
    }

    fn head_bytes(&self, rows: usize, vocabulary: usize, columns: usize) -> u64 {
        let bytes = token_logp::kernel::scratch_bytes(rows, vocabulary, columns);
        // Tensor cores take their operands rounded, and may give sums to be scaled.
        if self.facts().tensor_cores.is_some() { 2 * bytes } else { bytes }
    }

    fn unpacked_bytes(&self, outputs: usize, inputs: usize) -> u64 {
        let element = self.facts().tensor_cores.map_or(DType::F32, TensorCores::dtype).bytes();
        (element * (outputs * inputs).min(self.panel_elements())) as u64
    }

    fn index_bytes(&self, tokens: usize) -> u64 {
        self.kept_index_bytes(tokens) + gather::kernel::sorted_index_bytes(tokens)
    }

    fn adds_apart(&self) -> bool {
        // The routine on tensor cores writes and never adds.
        self.facts().tensor_cores.is_some()
    }

    fn program_scratch_bytes(&self, programs: &[Program]) -> u64 {
        program::kernel::scratch_bytes(self, programs)
    }

    fn synchronize(&self) -> Result<()> {
        const OP: &str = "synchronize";
        self.guarded(OP, || cubecl::future::block_on(self.client().sync()))?.map_err(|error| self.failed(OP, error))
    }

    fn add_scaled(&self, y: &mut Tensor, x: &Tensor, alpha: f32) -> Result<()> {
        elementwise::kernel::add_scaled(self, y, x, alpha)
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        elementwise::kernel::add(self, a, b)
    }

    fn divide(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        elementwise::kernel::divide(self, a, b)
    }

    fn scale(&self, y: &mut Tensor, alpha: f32) -> Result<()> {
        elementwise::kernel::scale(self, y, alpha)
    }

    fn fill_zero(&self, y: &mut Tensor) -> Result<()> {
        elementwise::kernel::fill(self, "fill_zero", y, 0.0)
    }

    fn add_bias(&self, y: &mut Tensor, bias: &Tensor) -> Result<()> {
        columns::kernel::add_bias(self, y, bias)
    }

    fn bias_backward(&self, dy: &Tensor, dbias: &mut Tensor) -> Result<()> {
        columns::kernel::bias_backward(self, dy, dbias)
    }

    fn scale_columns(&self, x: &Tensor, g: &Tensor) -> Result<Tensor> {
        columns::kernel::scale_columns(self, x, g)
    }

    fn scale_rows(&self, y: &mut Tensor, factors: &[f32]) -> Result<()> {
        columns::kernel::scale_rows(self, y, factors)
    }

    fn column_dot(&self, a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<()> {
        columns::kernel::column_dot(self, a, b, out)
    }

    fn sum_squares(&self, tensors: &[&Tensor]) -> Result<f64> {
        reduce::kernel::sum_squares(self, tensors)
    }

    fn gather_rows(&self, x: &Tensor, indices: &[u32]) -> Result<Tensor> {
        gather::kernel::rows(self, "gather_rows", x, indices, 1.0)
    }

    fn scatter_rows(&self, rows: usize, indices: &[u32], dy: &Tensor) -> Result<Tensor> {
        gather::kernel::scatter_rows(self, rows, indices, dy)
    }

    fn split_columns(&self, x: &Tensor, widths: &[usize]) -> Result<Vec<Tensor>> {
        columns::kernel::split_columns(self, x, widths)
    }

    fn join_columns(&self, parts: &[&Tensor]) -> Result<Tensor> {
        columns::kernel::join_columns(self, parts)
    }

    fn dropout(&self, x: &Tensor, p: f32, key: Key) -> Result<Tensor> {
        dropout::kernel::dropout(self, x, p, key)
    }

    fn embedding(&self, ids: &[u32], table: &Tensor, scale: f32) -> Result<Tensor> {
        gather::kernel::rows(self, "embedding", table, ids, scale)
    }

    fn embedding_backward(&self, ids: &[u32], dy: &Tensor, scale: f32, dtable: &mut Tensor) -> Result<()> {
        gather::kernel::add_rows(self, "embedding_backward", ids, dy, scale, dtable)
    }

    fn rms_norm(&self, x: &Tensor, w: &Tensor, epsilon: f32, offset: f32) -> Result<(Tensor, Tensor)> {
        rms_norm::kernel::forward(self, x, w, epsilon, offset)
    }

    fn rms_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        w: &Tensor,
        rstd: &Tensor,
        offset: f32,
        into: Option<Tensor>,
        dw: Option<&mut Tensor>,
    ) -> Result<Tensor> {
        rms_norm::kernel::backward(self, dy, x, w, rstd, offset, into, dw)
    }

    fn layer_norm(&self, x: &Tensor, w: &Tensor, b: &Tensor, epsilon: f32) -> Result<(Tensor, Tensor)> {
        layer_norm::kernel::forward(self, x, w, b, epsilon)
    }

    fn layer_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        w: &Tensor,
        statistics: &Tensor,
        into: Option<Tensor>,
        dwb: Option<(&mut Tensor, &mut Tensor)>,
    ) -> Result<Tensor> {
        layer_norm::kernel::backward(self, dy, x, w, statistics, into, dwb)
    }

    fn matmul(
        &self,
        a: &Tensor,
        transpose_a: bool,
        b: &Tensor,
        transpose_b: bool,
        alpha: f32,
        into: Option<Tensor>,
    ) -> Result<Tensor> {
        let (a, b) = (Operand { tensor: a, transpose: transpose_a }, Operand { tensor: b, transpose: transpose_b });
        matmul::kernel::matmul(self, "matmul", a, b, alpha, into)
    }

    fn linear(&self, x: &Tensor, w: &Weight) -> Result<Tensor> {
        linear::kernel::forward(self, "linear", x, w)
    }

    fn linear_backward(&self, dy: &Tensor, w: &Weight, into: Option<Tensor>) -> Result<Tensor> {
        linear::kernel::backward(self, "linear_backward", dy, w, into)
    }

    fn linear_weight_backward(&self, dy: &Tensor, x: &Tensor, dw: &mut Tensor) -> Result<()> {
        linear::kernel::weight_backward(self, dy, x, dw)
    }

    fn dora_norm(&self, w: &Weight, a: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor> {
        linear::kernel::dora_norm(self, w, a, b, scale)
    }

    fn rotary(
        &self,
        x: &mut Tensor,
        positions: &[u32],
        table: &RotaryTable,
        head_dim: usize,
        inverse: bool,
    ) -> Result<()> {
        rotary::kernel::rotary(self, x, positions, table, head_dim, inverse)
    }

    fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        segments: &Segments,
        spec: &AttentionSpec,
    ) -> Result<(Tensor, Tensor)> {
        attention::kernel::forward(self, q, k, v, segments, spec)
    }

    fn attention_backward(
        &self,
        dout: &Tensor,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        lse: &Tensor,
        segments: &Segments,
        spec: &AttentionSpec,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        attention::kernel::backward(self, dout, q, k, v, out, lse, segments, spec)
    }

    fn attention_cached(
        &self,
        q: &Tensor,
        k_cache: &Tensor,
        v_cache: &Tensor,
        length: usize,
        spec: &AttentionSpec,
    ) -> Result<Tensor> {
        attention::kernel::cached(self, q, k_cache, v_cache, length, spec)
    }

    fn write_rows(&self, cache: &mut Tensor, at: usize, rows: &Tensor) -> Result<()> {
        gather::kernel::write_rows(self, cache, at, rows)
    }

    fn gated(&self, gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
        gated::kernel::gated(self, gate, up, activation)
    }

    fn gated_backward(
        &self,
        dy: &Tensor,
        gate: &Tensor,
        up: &Tensor,
        activation: Activation,
    ) -> Result<(Tensor, Tensor)> {
        gated::kernel::gated_backward(self, dy, gate, up, activation)
    }

    fn activation(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        gated::kernel::activation(self, x, activation)
    }

    fn activation_backward(&self, dy: &Tensor, x: &Tensor, activation: Activation) -> Result<Tensor> {
        gated::kernel::activation_backward(self, dy, x, activation)
    }

    fn logits(&self, h: &Tensor, head: &Head) -> Result<Tensor> {
        token_logp::kernel::logits(self, h, head)
    }

    fn token_logp(&self, h: &Tensor, head: &Head, targets: &[u32], want: StatisticSet) -> Result<TokenStatistics> {
        token_logp::kernel::forward(self, h, head, targets, want)
    }

    fn token_logp_backward(
        &self,
        h: &Tensor,
        head: &Head,
        targets: &[u32],
        coefficients: &TokenCoefficients,
        dweight: Option<&mut Tensor>,
    ) -> Result<Tensor> {
        token_logp::kernel::backward(self, h, head, targets, coefficients, dweight)
    }

    fn token_logp_fused(
        &self,
        h: &Tensor,
        head: &Head,
        targets: &[u32],
        want: StatisticSet,
        coefficients: &TokenCoefficients,
        dweight: Option<&mut Tensor>,
    ) -> Result<(TokenStatistics, Tensor)> {
        token_logp::kernel::fused(self, h, head, targets, want, coefficients, dweight)
    }

    fn program_states(&self, program: &Program, parameter: &Tensor) -> Result<Vec<ProgramState>> {
        program::kernel::states(self, program, parameter)
    }

    fn read_state(&self, state: &ProgramState) -> Result<StateBuffer> {
        program::kernel::read_state(self, state)
    }

    fn write_state(&self, buffer: StateBuffer) -> Result<ProgramState> {
        program::kernel::write_state(self, buffer)
    }

    fn optimizer_step(
        &self,
        program: &Program,
        parameter: &mut Tensor,
        gradient: &Tensor,
        states: &mut [ProgramState],
        scalars: &Scalars,
    ) -> Result<()> {
        program::kernel::step(self, program, parameter, gradient, states, scalars)
    }
}
