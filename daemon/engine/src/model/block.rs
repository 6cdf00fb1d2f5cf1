//! One decoder layer: attention and MLP around the residual stream.
//!
//! All nine families are this one layer with other parts: which norms stand
//! where, whether q, k and v (or gate and up) are one product, whether queries
//! and keys are normed, which rotary table turns them.

use finetuned_shaders::{Activation, AttentionSpec, Device, RotaryTable, Segments, Tensor, TensorError};

use super::linear::{Linear, LinearSaved, Pass};
use super::norm::Norm;
use super::parameters::{Gradients, Parameters};

type Result<T> = std::result::Result<T, TensorError>;

#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "a model holds one of these a layer, built once")]
pub enum Projection {
    Split {
        q: Linear,
        k: Linear,
        v: Linear,
    },
    /// One product for all three (Phi-3's qkv_proj, GPT-2's c_attn).
    Fused(Linear),
}

#[derive(Debug, Clone)]
pub enum Mlp {
    /// down(act(gate x) ⊙ up x).
    Gated { gate: Linear, up: Linear, down: Linear },
    /// As above, gate and up one product (Phi-3).
    FusedGated { gate_up: Linear, down: Linear },
    /// out(act(in x)) (GPT-2).
    Plain { input: Linear, output: Linear },
}

#[derive(Debug, Clone)]
pub struct Block {
    pub norm_attention: Norm,
    pub projection: Projection,
    /// Per head, on queries and keys (Qwen 3, Gemma 3).
    pub query_norm: Option<Norm>,
    pub key_norm: Option<Norm>,
    pub output: Linear,
    /// On the attention's result, before it joins the stream (Gemma).
    pub post_attention: Option<Norm>,
    pub norm_mlp: Norm,
    pub mlp: Mlp,
    pub post_mlp: Option<Norm>,
    pub activation: Activation,
    pub attention: AttentionSpec,
    /// Index of the model's rotary table; None: no rotation in this layer.
    pub rotary: Option<usize>,
}

/// What a batch means to a layer.
pub struct Layout<'a> {
    pub segments: &'a Segments,
    pub positions: &'a [u32],
    pub tables: &'a [RotaryTable],
}

/// Everything that the backward pass of a layer reads.
#[derive(Debug)]
pub struct BlockSaved {
    x: Tensor,
    attention_input: Tensor,
    attention_statistics: Tensor,
    projection: [LinearSaved; 3],
    /// Before their norms, where there are any.
    raw_query: Option<(Tensor, Tensor)>,
    raw_key: Option<(Tensor, Tensor)>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mixed: Tensor,
    lse: Tensor,
    output: LinearSaved,
    /// The branch before its post norm, and that norm's statistics.
    post_attention: Option<(Tensor, Tensor)>,
    middle: Tensor,
    mlp_input: Tensor,
    mlp_statistics: Tensor,
    mlp: MlpSaved,
    post_mlp: Option<(Tensor, Tensor)>,
}

#[derive(Debug)]
struct MlpSaved {
    /// Gate and up, or the plain layer's first product.
    gate: Tensor,
    up: Option<Tensor>,
    inner: Tensor,
    saved: [LinearSaved; 3],
}

/// Keys and values of one layer for one growing sequence, `[capacity, G·D]`.
#[derive(Debug)]
pub struct LayerCache {
    pub keys: Tensor,
    pub values: Tensor,
}

impl Block {
    /// y of the layer, and what the backward pass needs.
    pub fn forward(
        &self,
        ops: &Device,
        p: &Parameters,
        x: Tensor,
        layout: &Layout,
        pass: &Pass,
    ) -> Result<(Tensor, BlockSaved)> {
        let (attention_input, attention_statistics) = self.norm_attention.forward(ops, p, &x)?;
        let projected = self.project(ops, p, &attention_input, layout.positions, layout.tables, pass)?;
        let Projected { q, k, v, saved: projection, raw_query, raw_key } = projected;
        let (mixed, lse) = ops.attention(&q, &k, &v, layout.segments, &self.attention)?;
        let (branch, output) = self.output.forward(ops, p, &mixed, pass)?;
        let (middle, post_attention) = join(ops, p, &x, branch, self.post_attention.as_ref())?;
        let (mlp_input, mlp_statistics) = self.norm_mlp.forward(ops, p, &middle)?;
        let (branch, mlp) = self.mlp_forward(ops, p, &mlp_input, pass)?;
        let (y, post_mlp) = join(ops, p, &middle, branch, self.post_mlp.as_ref())?;
        let saved = BlockSaved {
            x,
            attention_input,
            attention_statistics,
            projection,
            raw_query,
            raw_key,
            q,
            k,
            v,
            mixed,
            lse,
            output,
            post_attention,
            middle,
            mlp_input,
            mlp_statistics,
            mlp,
            post_mlp,
        };
        Ok((y, saved))
    }

    /// dx of the layer; None where `input_gradient` is false.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        ops: &Device,
        p: &Parameters,
        g: &mut Gradients,
        dy: Tensor,
        saved: BlockSaved,
        layout: &Layout,
        input_gradient: bool,
        pass: &Pass,
    ) -> Result<Option<Tensor>> {
        // MLP branch; dy also runs past it along the residual stream.
        let dbranch = self.branch_gradient(ops, p, g, &dy, self.post_mlp.as_ref(), saved.post_mlp.as_ref())?;
        let dinput =
            self.mlp_backward(ops, p, g, dbranch.as_ref().unwrap_or(&dy), &saved.mlp_input, saved.mlp, pass)?;
        drop(dbranch);
        let dmiddle = self.norm_mlp.backward(ops, p, g, &dinput, &saved.middle, &saved.mlp_statistics, Some(dy))?;
        drop(dinput);

        // Attention branch.
        let dbranch =
            self.branch_gradient(ops, p, g, &dmiddle, self.post_attention.as_ref(), saved.post_attention.as_ref())?;
        let dmixed = self
            .output
            .backward(ops, p, g, dbranch.as_ref().unwrap_or(&dmiddle), &saved.mixed, &saved.output, None, true, pass)?
            .ok_or_else(no_gradient)?;
        drop(dbranch);
        let (mut dq, mut dk, dv) = ops.attention_backward(
            &dmixed,
            &saved.q,
            &saved.k,
            &saved.v,
            &saved.mixed,
            &saved.lse,
            layout.segments,
            &self.attention,
        )?;
        drop(dmixed);
        if let Some(table) = self.rotary.and_then(|i| layout.tables.get(i)) {
            ops.rotary(&mut dq, layout.positions, table, self.attention.head_dim, true)?;
            ops.rotary(&mut dk, layout.positions, table, self.attention.head_dim, true)?;
        }
        if let (Some(norm), Some((raw, statistics))) = (&self.query_norm, &saved.raw_query) {
            dq = norm.backward(ops, p, g, &dq, raw, statistics, None)?;
        }
        if let (Some(norm), Some((raw, statistics))) = (&self.key_norm, &saved.raw_key) {
            dk = norm.backward(ops, p, g, &dk, raw, statistics, None)?;
        }
        let input = &saved.attention_input;
        let dinput = match &self.projection {
            Projection::Split { q, k, v } => {
                let [sq, sk, sv] = &saved.projection;
                let d = q.backward(ops, p, g, &dq, input, sq, None, input_gradient, pass)?;
                let d = k.backward(ops, p, g, &dk, input, sk, d, input_gradient, pass)?;
                v.backward(ops, p, g, &dv, input, sv, d, input_gradient, pass)?
            }
            Projection::Fused(qkv) => {
                let joined = ops.join_columns(&[&dq, &dk, &dv])?;
                qkv.backward(ops, p, g, &joined, input, &saved.projection[0], None, input_gradient, pass)?
            }
        };
        let norm_wants = g.wanted(self.norm_attention.weight);
        match dinput {
            Some(dinput) => self
                .norm_attention
                .backward(ops, p, g, &dinput, &saved.x, &saved.attention_statistics, Some(dmiddle))
                .map(Some),
            None if norm_wants => Err(no_gradient()),
            None => Ok(None),
        }
    }

    /// One step of generation: `x [n, C]` are the last `n` tokens of a sequence
    /// whose cache then holds `length` rows.
    #[allow(clippy::too_many_arguments)]
    pub fn decode(
        &self,
        ops: &Device,
        p: &Parameters,
        x: &Tensor,
        cache: &mut LayerCache,
        length: usize,
        tables: &[RotaryTable],
        pass: &Pass,
    ) -> Result<Tensor> {
        let n = x.rows();
        let first = length - n;
        let positions: Vec<u32> = (first..length).map(|i| i as u32).collect();
        let (input, _) = self.norm_attention.forward(ops, p, x)?;
        let projected = self.project(ops, p, &input, &positions, tables, pass)?;
        ops.write_rows(&mut cache.keys, first, &projected.k)?;
        ops.write_rows(&mut cache.values, first, &projected.v)?;
        let mixed = ops.attention_cached(&projected.q, &cache.keys, &cache.values, length, &self.attention)?;
        let (branch, _) = self.output.forward(ops, p, &mixed, pass)?;
        let (middle, _) = join(ops, p, x, branch, self.post_attention.as_ref())?;
        let (input, _) = self.norm_mlp.forward(ops, p, &middle)?;
        let (branch, _) = self.mlp_forward(ops, p, &input, pass)?;
        Ok(join(ops, p, &middle, branch, self.post_mlp.as_ref())?.0)
    }

    /// Every linear layer, in a fixed order.
    pub fn linears(&self) -> Vec<&Linear> {
        let mut all = match &self.projection {
            Projection::Split { q, k, v } => vec![q, k, v],
            Projection::Fused(qkv) => vec![qkv],
        };
        all.push(&self.output);
        match &self.mlp {
            Mlp::Gated { gate, up, down } => all.extend([gate, up, down]),
            Mlp::FusedGated { gate_up, down } => all.extend([gate_up, down]),
            Mlp::Plain { input, output } => all.extend([input, output]),
        }
        all
    }

    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = match &mut self.projection {
            Projection::Split { q, k, v } => vec![q, k, v],
            Projection::Fused(qkv) => vec![qkv],
        };
        all.push(&mut self.output);
        match &mut self.mlp {
            Mlp::Gated { gate, up, down } => all.extend([gate, up, down]),
            Mlp::FusedGated { gate_up, down } => all.extend([gate_up, down]),
            Mlp::Plain { input, output } => all.extend([input, output]),
        }
        all
    }

    fn project(
        &self,
        ops: &Device,
        p: &Parameters,
        input: &Tensor,
        positions: &[u32],
        tables: &[RotaryTable],
        pass: &Pass,
    ) -> Result<Projected> {
        let spec = &self.attention;
        let mut saved: [LinearSaved; 3] = Default::default();
        let (mut q, mut k, v) = match &self.projection {
            Projection::Split { q, k, v } => {
                let (q, s0) = q.forward(ops, p, input, pass)?;
                let (k, s1) = k.forward(ops, p, input, pass)?;
                let (v, s2) = v.forward(ops, p, input, pass)?;
                saved = [s0, s1, s2];
                (q, k, v)
            }
            Projection::Fused(qkv) => {
                let (joined, s0) = qkv.forward(ops, p, input, pass)?;
                saved[0] = s0;
                let kv = spec.kv_heads * spec.head_dim;
                let mut parts = ops.split_columns(&joined, &[spec.heads * spec.head_dim, kv, kv])?.into_iter();
                match (parts.next(), parts.next(), parts.next()) {
                    (Some(q), Some(k), Some(v)) => (q, k, v),
                    _ => return Err(no_gradient()),
                }
            }
        };
        let mut raw_query = None;
        let mut raw_key = None;
        if let Some(norm) = &self.query_norm {
            let (normed, statistics) = norm.forward(ops, p, &q)?;
            raw_query = Some((std::mem::replace(&mut q, normed), statistics));
        }
        if let Some(norm) = &self.key_norm {
            let (normed, statistics) = norm.forward(ops, p, &k)?;
            raw_key = Some((std::mem::replace(&mut k, normed), statistics));
        }
        if let Some(table) = self.rotary.and_then(|i| tables.get(i)) {
            ops.rotary(&mut q, positions, table, spec.head_dim, false)?;
            ops.rotary(&mut k, positions, table, spec.head_dim, false)?;
        }
        Ok(Projected { q, k, v, saved, raw_query, raw_key })
    }

    fn mlp_forward(&self, ops: &Device, p: &Parameters, x: &Tensor, pass: &Pass) -> Result<(Tensor, MlpSaved)> {
        match &self.mlp {
            Mlp::Gated { gate, up, down } => {
                let (g, s0) = gate.forward(ops, p, x, pass)?;
                let (u, s1) = up.forward(ops, p, x, pass)?;
                let inner = ops.gated(&g, &u, self.activation)?;
                let (y, s2) = down.forward(ops, p, &inner, pass)?;
                Ok((y, MlpSaved { gate: g, up: Some(u), inner, saved: [s0, s1, s2] }))
            }
            Mlp::FusedGated { gate_up, down } => {
                let (joined, s0) = gate_up.forward(ops, p, x, pass)?;
                let half = gate_up.outputs / 2;
                let mut parts = ops.split_columns(&joined, &[half, half])?.into_iter();
                let (Some(g), Some(u)) = (parts.next(), parts.next()) else { return Err(no_gradient()) };
                let inner = ops.gated(&g, &u, self.activation)?;
                let (y, s1) = down.forward(ops, p, &inner, pass)?;
                Ok((y, MlpSaved { gate: g, up: Some(u), inner, saved: [s0, s1, LinearSaved::default()] }))
            }
            Mlp::Plain { input, output } => {
                let (h, s0) = input.forward(ops, p, x, pass)?;
                let inner = ops.activation(&h, self.activation)?;
                let (y, s1) = output.forward(ops, p, &inner, pass)?;
                Ok((y, MlpSaved { gate: h, up: None, inner, saved: [s0, s1, LinearSaved::default()] }))
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn mlp_backward(
        &self,
        ops: &Device,
        p: &Parameters,
        g: &mut Gradients,
        dy: &Tensor,
        x: &Tensor,
        saved: MlpSaved,
        pass: &Pass,
    ) -> Result<Tensor> {
        let [s0, s1, s2] = &saved.saved;
        let dx = match (&self.mlp, &saved.up) {
            (Mlp::Gated { gate, up, down }, Some(u)) => {
                let dinner =
                    down.backward(ops, p, g, dy, &saved.inner, s2, None, true, pass)?.ok_or_else(no_gradient)?;
                let (dgate, dup) = ops.gated_backward(&dinner, &saved.gate, u, self.activation)?;
                drop(dinner);
                let dx = gate.backward(ops, p, g, &dgate, x, s0, None, true, pass)?;
                up.backward(ops, p, g, &dup, x, s1, dx, true, pass)?
            }
            (Mlp::FusedGated { gate_up, down }, Some(u)) => {
                let dinner =
                    down.backward(ops, p, g, dy, &saved.inner, s1, None, true, pass)?.ok_or_else(no_gradient)?;
                let (dgate, dup) = ops.gated_backward(&dinner, &saved.gate, u, self.activation)?;
                let joined = ops.join_columns(&[&dgate, &dup])?;
                gate_up.backward(ops, p, g, &joined, x, s0, None, true, pass)?
            }
            (Mlp::Plain { input, output }, _) => {
                let dinner =
                    output.backward(ops, p, g, dy, &saved.inner, s1, None, true, pass)?.ok_or_else(no_gradient)?;
                let dh = ops.activation_backward(&dinner, &saved.gate, self.activation)?;
                input.backward(ops, p, g, &dh, x, s0, None, true, pass)?
            }
            _ => None,
        };
        dx.ok_or_else(no_gradient)
    }

    /// The gradient before a branch's post norm; None where there is no norm
    /// and the stream's gradient is the branch's.
    fn branch_gradient(
        &self,
        ops: &Device,
        p: &Parameters,
        g: &mut Gradients,
        dy: &Tensor,
        norm: Option<&Norm>,
        saved: Option<&(Tensor, Tensor)>,
    ) -> Result<Option<Tensor>> {
        match (norm, saved) {
            (Some(norm), Some((raw, statistics))) => norm.backward(ops, p, g, dy, raw, statistics, None).map(Some),
            _ => Ok(None),
        }
    }
}

struct Projected {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    saved: [LinearSaved; 3],
    raw_query: Option<(Tensor, Tensor)>,
    raw_key: Option<(Tensor, Tensor)>,
}

/// Adds a branch to the stream, through its post norm where it has one.
fn join(
    ops: &Device,
    p: &Parameters,
    stream: &Tensor,
    mut branch: Tensor,
    norm: Option<&Norm>,
) -> Result<(Tensor, Option<(Tensor, Tensor)>)> {
    match norm {
        None => {
            ops.add_scaled(&mut branch, stream, 1.0)?;
            Ok((branch, None))
        }
        Some(norm) => {
            let (mut normed, statistics) = norm.forward(ops, p, &branch)?;
            ops.add_scaled(&mut normed, stream, 1.0)?;
            Ok((normed, Some((branch, statistics))))
        }
    }
}

fn no_gradient() -> TensorError {
    TensorError::Shape { op: "block", expected: "a gradient of the layer's input".into(), got: "none".into() }
}
