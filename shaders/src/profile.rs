//! A device that times its operations one by one, for `finetune bench
//! --profile`: it waits for each, so its whole is slower than the device's own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use finetuned_plugin_api::program::{Program, Scalars, StateBuffer};

use crate::error::Result;
use crate::ops::{
    Activation, AttentionSpec, DeviceInfo, Head, Ops, ProgramState, Reading, RotaryTable, Segments, StatisticSet,
    TokenCoefficients, TokenStatistics, Weight, WeightKind,
};
use crate::random::Key;
use crate::tensor::Tensor;

/// What one operation took.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    pub operation: &'static str,
    pub calls: usize,
    pub seconds: f64,
}

/// The device within, timed.
pub struct Profiled {
    inner: Arc<dyn Ops>,
    timings: Mutex<Vec<Timing>>,
}

impl Profiled {
    pub fn new(inner: Arc<dyn Ops>) -> Profiled {
        Profiled { inner, timings: Mutex::default() }
    }

    /// The timings since the last call, the longest first.
    pub fn take(&self) -> Vec<Timing> {
        let mut timings = std::mem::take(&mut *self.timings.lock().unwrap_or_else(PoisonError::into_inner));
        timings.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        timings
    }

    fn timed<T>(&self, operation: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let result = work()?;
        self.inner.synchronize()?;
        let seconds = started.elapsed().as_secs_f64();
        let mut timings = self.timings.lock().unwrap_or_else(PoisonError::into_inner);
        match timings.iter_mut().find(|timing| timing.operation == operation) {
            Some(timing) => {
                timing.calls += 1;
                timing.seconds += seconds;
            }
            None => timings.push(Timing { operation, calls: 1, seconds }),
        }
        Ok(result)
    }
}

impl Ops for Profiled {
    fn info(&self) -> DeviceInfo {
        self.inner.info()
    }

    fn zeros(&self, shape: &[usize]) -> Result<Tensor> {
        self.timed("zeros", || self.inner.zeros(shape))
    }

    fn upload(&self, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        self.timed("upload", || self.inner.upload(shape, values))
    }

    fn upload_u32(&self, shape: &[usize], values: &[u32]) -> Result<Tensor> {
        self.timed("upload_u32", || self.inner.upload_u32(shape, values))
    }

    fn upload_bf16(&self, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        self.timed("upload_bf16", || self.inner.upload_bf16(shape, values))
    }

    fn upload_nf4(&self, shape: &[usize], values: &[f32], double_quant: bool) -> Result<Weight> {
        self.timed("upload_nf4", || self.inner.upload_nf4(shape, values, double_quant))
    }

    fn random_weight(&self, shape: &[usize], scale: f32, key: Key, kind: WeightKind) -> Result<Weight> {
        self.timed("random_weight", || self.inner.random_weight(shape, scale, key, kind))
    }

    fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        self.timed("read", || self.inner.read(x))
    }

    fn read_later(&self, x: &Tensor) -> Result<Reading<'_>> {
        self.timed("read_later", || self.inner.read_later(x))
    }

    fn write(&self, x: &mut Tensor, values: &[f32]) -> Result<()> {
        self.timed("write", || self.inner.write(x, values))
    }

    fn copy(&self, x: &Tensor) -> Result<Tensor> {
        self.timed("copy", || self.inner.copy(x))
    }

    fn read_weight(&self, w: &Weight) -> Result<Vec<f32>> {
        self.timed("read_weight", || self.inner.read_weight(w))
    }

    fn allocated_bytes(&self) -> (u64, u64) {
        self.inner.allocated_bytes()
    }

    fn reset_peak(&self) {
        self.inner.reset_peak()
    }

    fn trim(&self) {
        self.inner.trim()
    }

    fn reserve(&self, bytes: u64) -> Result<()> {
        self.inner.reserve(bytes)
    }

    fn head_bytes(&self, rows: usize, vocabulary: usize, columns: usize) -> u64 {
        self.inner.head_bytes(rows, vocabulary, columns)
    }

    fn unpacked_bytes(&self, outputs: usize, inputs: usize) -> u64 {
        self.inner.unpacked_bytes(outputs, inputs)
    }

    fn tensor_bytes(&self, bytes: u64) -> u64 {
        self.inner.tensor_bytes(bytes)
    }

    fn index_bytes(&self, tokens: usize) -> u64 {
        self.inner.index_bytes(tokens)
    }

    fn adds_apart(&self) -> bool {
        self.inner.adds_apart()
    }

    fn synchronize(&self) -> Result<()> {
        self.inner.synchronize()
    }

    fn add_scaled(&self, y: &mut Tensor, x: &Tensor, alpha: f32) -> Result<()> {
        self.timed("add_scaled", || self.inner.add_scaled(y, x, alpha))
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.timed("add", || self.inner.add(a, b))
    }

    fn divide(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.timed("divide", || self.inner.divide(a, b))
    }

    fn scale(&self, y: &mut Tensor, alpha: f32) -> Result<()> {
        self.timed("scale", || self.inner.scale(y, alpha))
    }

    fn fill_zero(&self, y: &mut Tensor) -> Result<()> {
        self.timed("fill_zero", || self.inner.fill_zero(y))
    }

    fn scale_rows(&self, y: &mut Tensor, factors: &[f32]) -> Result<()> {
        self.timed("scale_rows", || self.inner.scale_rows(y, factors))
    }

    fn add_bias(&self, y: &mut Tensor, bias: &Tensor) -> Result<()> {
        self.timed("add_bias", || self.inner.add_bias(y, bias))
    }

    fn bias_backward(&self, dy: &Tensor, dbias: &mut Tensor) -> Result<()> {
        self.timed("bias_backward", || self.inner.bias_backward(dy, dbias))
    }

    fn scale_columns(&self, x: &Tensor, g: &Tensor) -> Result<Tensor> {
        self.timed("scale_columns", || self.inner.scale_columns(x, g))
    }

    fn column_dot(&self, a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<()> {
        self.timed("column_dot", || self.inner.column_dot(a, b, out))
    }

    fn sum_squares(&self, tensors: &[&Tensor]) -> Result<f64> {
        self.timed("sum_squares", || self.inner.sum_squares(tensors))
    }

    fn gather_rows(&self, x: &Tensor, indices: &[u32]) -> Result<Tensor> {
        self.timed("gather_rows", || self.inner.gather_rows(x, indices))
    }

    fn scatter_rows(&self, rows: usize, indices: &[u32], dy: &Tensor) -> Result<Tensor> {
        self.timed("scatter_rows", || self.inner.scatter_rows(rows, indices, dy))
    }

    fn split_columns(&self, x: &Tensor, widths: &[usize]) -> Result<Vec<Tensor>> {
        self.timed("split_columns", || self.inner.split_columns(x, widths))
    }

    fn join_columns(&self, parts: &[&Tensor]) -> Result<Tensor> {
        self.timed("join_columns", || self.inner.join_columns(parts))
    }

    fn dropout(&self, x: &Tensor, p: f32, key: Key) -> Result<Tensor> {
        self.timed("dropout", || self.inner.dropout(x, p, key))
    }

    fn embedding(&self, ids: &[u32], table: &Tensor, scale: f32) -> Result<Tensor> {
        self.timed("embedding", || self.inner.embedding(ids, table, scale))
    }

    fn embedding_backward(&self, ids: &[u32], dy: &Tensor, scale: f32, dtable: &mut Tensor) -> Result<()> {
        self.timed("embedding_backward", || self.inner.embedding_backward(ids, dy, scale, dtable))
    }

    fn rms_norm(&self, x: &Tensor, w: &Tensor, epsilon: f32, offset: f32) -> Result<(Tensor, Tensor)> {
        self.timed("rms_norm", || self.inner.rms_norm(x, w, epsilon, offset))
    }

    #[allow(clippy::too_many_arguments)]
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
        self.timed("rms_norm_backward", || self.inner.rms_norm_backward(dy, x, w, rstd, offset, into, dw))
    }

    fn layer_norm(&self, x: &Tensor, w: &Tensor, b: &Tensor, epsilon: f32) -> Result<(Tensor, Tensor)> {
        self.timed("layer_norm", || self.inner.layer_norm(x, w, b, epsilon))
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
        self.timed("layer_norm_backward", || self.inner.layer_norm_backward(dy, x, w, statistics, into, dwb))
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
        self.timed("matmul", || self.inner.matmul(a, transpose_a, b, transpose_b, alpha, into))
    }

    fn linear(&self, x: &Tensor, w: &Weight) -> Result<Tensor> {
        self.timed("linear", || self.inner.linear(x, w))
    }

    fn linear_backward(&self, dy: &Tensor, w: &Weight, into: Option<Tensor>) -> Result<Tensor> {
        self.timed("linear_backward", || self.inner.linear_backward(dy, w, into))
    }

    fn linear_weight_backward(&self, dy: &Tensor, x: &Tensor, dw: &mut Tensor) -> Result<()> {
        self.timed("linear_weight_backward", || self.inner.linear_weight_backward(dy, x, dw))
    }

    fn dora_norm(&self, w: &Weight, a: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor> {
        self.timed("dora_norm", || self.inner.dora_norm(w, a, b, scale))
    }

    fn rotary(
        &self,
        x: &mut Tensor,
        positions: &[u32],
        table: &RotaryTable,
        head_dim: usize,
        inverse: bool,
    ) -> Result<()> {
        self.timed("rotary", || self.inner.rotary(x, positions, table, head_dim, inverse))
    }

    fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        segments: &Segments,
        spec: &AttentionSpec,
    ) -> Result<(Tensor, Tensor)> {
        self.timed("attention", || self.inner.attention(q, k, v, segments, spec))
    }

    #[allow(clippy::too_many_arguments)]
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
        self.timed("attention_backward", || self.inner.attention_backward(dout, q, k, v, out, lse, segments, spec))
    }

    fn attention_cached(
        &self,
        q: &Tensor,
        k_cache: &Tensor,
        v_cache: &Tensor,
        length: usize,
        spec: &AttentionSpec,
    ) -> Result<Tensor> {
        self.timed("attention_cached", || self.inner.attention_cached(q, k_cache, v_cache, length, spec))
    }

    fn write_rows(&self, cache: &mut Tensor, at: usize, rows: &Tensor) -> Result<()> {
        self.timed("write_rows", || self.inner.write_rows(cache, at, rows))
    }

    fn gated(&self, gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
        self.timed("gated", || self.inner.gated(gate, up, activation))
    }

    fn gated_backward(
        &self,
        dy: &Tensor,
        gate: &Tensor,
        up: &Tensor,
        activation: Activation,
    ) -> Result<(Tensor, Tensor)> {
        self.timed("gated_backward", || self.inner.gated_backward(dy, gate, up, activation))
    }

    fn activation(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.timed("activation", || self.inner.activation(x, activation))
    }

    fn activation_backward(&self, dy: &Tensor, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.timed("activation_backward", || self.inner.activation_backward(dy, x, activation))
    }

    fn logits(&self, h: &Tensor, head: &Head) -> Result<Tensor> {
        self.timed("logits", || self.inner.logits(h, head))
    }

    fn token_logp(&self, h: &Tensor, head: &Head, targets: &[u32], want: StatisticSet) -> Result<TokenStatistics> {
        self.timed("token_logp", || self.inner.token_logp(h, head, targets, want))
    }

    fn token_logp_backward(
        &self,
        h: &Tensor,
        head: &Head,
        targets: &[u32],
        coefficients: &TokenCoefficients,
        dweight: Option<&mut Tensor>,
    ) -> Result<Tensor> {
        self.timed("token_logp_backward", || self.inner.token_logp_backward(h, head, targets, coefficients, dweight))
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
        self.timed("token_logp_fused", || self.inner.token_logp_fused(h, head, targets, want, coefficients, dweight))
    }

    fn program_states(&self, program: &Program, parameter: &Tensor) -> Result<Vec<ProgramState>> {
        self.timed("program_states", || self.inner.program_states(program, parameter))
    }

    fn read_state(&self, state: &ProgramState) -> Result<StateBuffer> {
        self.timed("read_state", || self.inner.read_state(state))
    }

    fn write_state(&self, buffer: StateBuffer) -> Result<ProgramState> {
        self.timed("write_state", || self.inner.write_state(buffer))
    }

    fn program_scratch_bytes(&self, programs: &[Program]) -> u64 {
        self.inner.program_scratch_bytes(programs)
    }

    fn optimizer_step(
        &self,
        program: &Program,
        parameter: &mut Tensor,
        gradient: &Tensor,
        states: &mut [ProgramState],
        scalars: &Scalars,
    ) -> Result<()> {
        self.timed("optimizer_step", || self.inner.optimizer_step(program, parameter, gradient, states, scalars))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;

    #[test]
    fn results_are_the_device_s_and_each_call_is_counted() {
        let profiled = Profiled::new(Cpu::new(Some(1)).unwrap());
        let x = profiled.upload(&[2], &[1.0, 2.0]).unwrap();
        let y = profiled.add(&x, &x).unwrap();
        assert_eq!(profiled.read(&profiled.add(&x, &y).unwrap()).unwrap(), [3.0, 6.0]);
        assert!(profiled.add(&x, &profiled.zeros(&[3]).unwrap()).is_err());
        let timings = profiled.take();
        assert_eq!(timings.iter().find(|t| t.operation == "add").map(|t| t.calls), Some(2));
        assert!(profiled.take().is_empty());
    }
}
