//! The CPU as an [`Ops`]: each method goes to its operation's folder.

use finetuned_plugin_api::program::{Program, Scalars, StateBuffer};

use super::Cpu;
use crate::error::{Result, shape_error};
use crate::ops::{
    Activation, AttentionSpec, DeviceInfo, Head, Ops, ProgramState, RotaryTable, Segments, StateStorage, StatisticSet,
    TokenCoefficients, TokenStatistics, Weight, WeightKind, attention, columns, dropout, elementwise, embedding, gated,
    gather, layer_norm, linear, matmul, nf4, program, random_weight, reduce, rms_norm, rotary, token_logp,
};
use crate::random::Key;
use crate::tensor::Tensor;

impl Ops for Cpu {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: "cpu".into(),
            parallelism: self.workers.threads(),
            memory_bytes: 0,
            product_rounding: 0.0,
            on_host: true,
            shares_host_memory: true,
        }
    }

    fn zeros(&self, shape: &[usize]) -> Result<Tensor> {
        self.zeros_f32("zeros", shape)
    }

    fn upload(&self, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        self.upload_f32(shape, values)
    }

    fn upload_u32(&self, shape: &[usize], values: &[u32]) -> Result<Tensor> {
        self.upload_words(shape, values)
    }

    fn upload_bf16(&self, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        self.upload_half(shape, values)
    }

    fn upload_nf4(&self, shape: &[usize], values: &[f32], double_quant: bool) -> Result<Weight> {
        Ok(Weight::Nf4(nf4::cpu::quantise(self, shape, values, double_quant)?))
    }

    fn random_weight(&self, shape: &[usize], scale: f32, key: Key, kind: WeightKind) -> Result<Weight> {
        random_weight::cpu::random_weight(self, shape, scale, key, kind)
    }

    fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        self.read_values(x)
    }

    fn write(&self, x: &mut Tensor, values: &[f32]) -> Result<()> {
        self.write_values(x, values)
    }

    fn copy(&self, x: &Tensor) -> Result<Tensor> {
        self.copy_tensor("copy", x)
    }

    fn read_weight(&self, w: &Weight) -> Result<Vec<f32>> {
        linear::cpu::read(self, w)
    }

    fn allocated_bytes(&self) -> (u64, u64) {
        self.counts()
    }

    fn reset_peak(&self) {
        self.reset_peak_bytes();
    }

    fn trim(&self) {
        self.trim_pool();
    }

    fn tensor_bytes(&self, bytes: u64) -> u64 {
        super::buffer::bucket(bytes as usize) as u64
    }

    fn head_bytes(&self, rows: usize, vocabulary: usize, columns: usize) -> u64 {
        token_logp::cpu::scratch_bytes(rows, vocabulary, columns)
    }

    fn unpacked_bytes(&self, outputs: usize, inputs: usize) -> u64 {
        linear::cpu::slab_bytes(outputs, inputs)
    }

    fn add_scaled(&self, y: &mut Tensor, x: &Tensor, alpha: f32) -> Result<()> {
        elementwise::cpu::add_scaled(self, y, x, alpha)
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        elementwise::cpu::add(self, a, b)
    }

    fn divide(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        elementwise::cpu::divide(self, a, b)
    }

    fn scale(&self, y: &mut Tensor, alpha: f32) -> Result<()> {
        elementwise::cpu::scale(self, y, alpha)
    }

    fn fill_zero(&self, y: &mut Tensor) -> Result<()> {
        elementwise::cpu::fill_zero(self, y)
    }

    fn add_bias(&self, y: &mut Tensor, bias: &Tensor) -> Result<()> {
        columns::cpu::add_bias(self, y, bias)
    }

    fn bias_backward(&self, dy: &Tensor, dbias: &mut Tensor) -> Result<()> {
        columns::cpu::bias_backward(self, dy, dbias)
    }

    fn scale_columns(&self, x: &Tensor, g: &Tensor) -> Result<Tensor> {
        columns::cpu::scale_columns(self, x, g)
    }

    fn column_dot(&self, a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<()> {
        columns::cpu::column_dot(self, a, b, out)
    }

    fn sum_squares(&self, tensors: &[&Tensor]) -> Result<f64> {
        reduce::cpu::sum_squares(self, tensors)
    }

    fn gather_rows(&self, x: &Tensor, indices: &[u32]) -> Result<Tensor> {
        gather::cpu::gather_rows(self, x, indices)
    }

    fn scatter_rows(&self, rows: usize, indices: &[u32], dy: &Tensor) -> Result<Tensor> {
        gather::cpu::scatter_rows(self, rows, indices, dy)
    }

    fn split_columns(&self, x: &Tensor, widths: &[usize]) -> Result<Vec<Tensor>> {
        columns::cpu::split_columns(self, x, widths)
    }

    fn join_columns(&self, parts: &[&Tensor]) -> Result<Tensor> {
        columns::cpu::join_columns(self, parts)
    }

    fn dropout(&self, x: &Tensor, p: f32, key: Key) -> Result<Tensor> {
        dropout::cpu::dropout(self, x, p, key)
    }

    fn embedding(&self, ids: &[u32], table: &Tensor, scale: f32) -> Result<Tensor> {
        embedding::cpu::forward(self, ids, table, scale)
    }

    fn embedding_backward(&self, ids: &[u32], dy: &Tensor, scale: f32, dtable: &mut Tensor) -> Result<()> {
        embedding::cpu::backward(self, ids, dy, scale, dtable)
    }

    fn rms_norm(&self, x: &Tensor, w: &Tensor, epsilon: f32, offset: f32) -> Result<(Tensor, Tensor)> {
        rms_norm::cpu::forward(self, x, w, epsilon, offset)
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
        rms_norm::cpu::backward(self, dy, x, w, rstd, offset, into, dw)
    }

    fn layer_norm(&self, x: &Tensor, w: &Tensor, b: &Tensor, epsilon: f32) -> Result<(Tensor, Tensor)> {
        layer_norm::cpu::forward(self, x, w, b, epsilon)
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
        layer_norm::cpu::backward(self, dy, x, w, statistics, into, dwb)
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
        matmul::cpu::matmul(self, a, transpose_a, b, transpose_b, alpha, into)
    }

    fn linear(&self, x: &Tensor, w: &Weight) -> Result<Tensor> {
        linear::cpu::forward(self, x, w)
    }

    fn linear_backward(&self, dy: &Tensor, w: &Weight, into: Option<Tensor>) -> Result<Tensor> {
        linear::cpu::backward(self, dy, w, into)
    }

    fn linear_weight_backward(&self, dy: &Tensor, x: &Tensor, dw: &mut Tensor) -> Result<()> {
        linear::cpu::weight_backward(self, dy, x, dw)
    }

    fn dora_norm(&self, w: &Weight, a: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor> {
        linear::cpu::dora_norm(self, w, a, b, scale)
    }

    fn rotary(
        &self,
        x: &mut Tensor,
        positions: &[u32],
        table: &RotaryTable,
        head_dim: usize,
        inverse: bool,
    ) -> Result<()> {
        rotary::cpu::rotary(self, x, positions, table, head_dim, inverse)
    }

    fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        segments: &Segments,
        spec: &AttentionSpec,
    ) -> Result<(Tensor, Tensor)> {
        attention::cpu::forward(self, q, k, v, segments, spec)
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
        attention::cpu::backward(self, dout, q, k, v, out, lse, segments, spec)
    }

    fn attention_cached(
        &self,
        q: &Tensor,
        k_cache: &Tensor,
        v_cache: &Tensor,
        length: usize,
        spec: &AttentionSpec,
    ) -> Result<Tensor> {
        attention::cpu::cached(self, q, k_cache, v_cache, length, spec)
    }

    fn write_rows(&self, cache: &mut Tensor, at: usize, rows: &Tensor) -> Result<()> {
        gather::cpu::write_rows(self, cache, at, rows)
    }

    fn gated(&self, gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
        gated::cpu::gated(self, gate, up, activation)
    }

    fn gated_backward(
        &self,
        dy: &Tensor,
        gate: &Tensor,
        up: &Tensor,
        activation: Activation,
    ) -> Result<(Tensor, Tensor)> {
        gated::cpu::gated_backward(self, dy, gate, up, activation)
    }

    fn activation(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        gated::cpu::activation(self, x, activation)
    }

    fn activation_backward(&self, dy: &Tensor, x: &Tensor, activation: Activation) -> Result<Tensor> {
        gated::cpu::activation_backward(self, dy, x, activation)
    }

    fn logits(&self, h: &Tensor, head: &Head) -> Result<Tensor> {
        token_logp::cpu::logits(self, h, head)
    }

    fn token_logp(&self, h: &Tensor, head: &Head, targets: &[u32], want: StatisticSet) -> Result<TokenStatistics> {
        token_logp::cpu::forward(self, h, head, targets, want)
    }

    fn token_logp_backward(
        &self,
        h: &Tensor,
        head: &Head,
        targets: &[u32],
        coefficients: &TokenCoefficients,
        dweight: Option<&mut Tensor>,
    ) -> Result<Tensor> {
        token_logp::cpu::backward(self, h, head, targets, coefficients, dweight)
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
        token_logp::cpu::fused(self, h, head, targets, want, coefficients, dweight)
    }

    fn program_states(&self, program: &Program, parameter: &Tensor) -> Result<Vec<ProgramState>> {
        let parameter = self.f32("program_states", parameter)?;
        if parameter.len() != program.elements() {
            return Err(shape_error(
                "program_states",
                format!("{} elements", program.elements()),
                parameter.len().to_string(),
            ));
        }
        let state = |state| ProgramState(StateStorage::Host(StateBuffer::new(state, parameter)));
        Ok(program.states().iter().map(state).collect())
    }

    fn read_state(&self, state: &ProgramState) -> Result<StateBuffer> {
        match &state.0 {
            StateStorage::Host(buffer) => Ok(buffer.clone()),
            _ => Err(super::elsewhere("read_state")),
        }
    }

    fn write_state(&self, buffer: StateBuffer) -> Result<ProgramState> {
        Ok(ProgramState(StateStorage::Host(buffer)))
    }

    fn program_scratch_bytes(&self, programs: &[Program]) -> u64 {
        program::scratch_bytes(programs)
    }

    fn optimizer_step(
        &self,
        program: &Program,
        parameter: &mut Tensor,
        gradient: &Tensor,
        states: &mut [ProgramState],
        scalars: &Scalars,
    ) -> Result<()> {
        const OP: &str = "optimizer_step";
        let gradient = self.f32(OP, gradient)?;
        let parameter = self.f32_mut(OP, parameter)?;
        let mut slices = Vec::with_capacity(states.len());
        for state in states {
            match &mut state.0 {
                StateStorage::Host(buffer) => slices.push(buffer.slice()),
                _ => return Err(super::elsewhere(OP)),
            }
        }
        let mut scratch = self.program.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        program::run(&self.workers, program, parameter, gradient, slices, scalars, &mut scratch)
    }
}
