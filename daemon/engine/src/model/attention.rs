//! The attention branch of a layer: projections, norms of queries and keys,
//! rotation, attention, output.

use finetuned_shaders::{AttentionSpec, RotaryTable, Tensor, TensorError};

use super::context::{Backward, Forward, InputGradient};
use super::linear::{Linear, LinearSaved};
use super::norm::{Norm, NormSaved};
use super::products::{Products, ProductsSaved};

type Result<T> = std::result::Result<T, TensorError>;

/// The attention branch.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Queries, keys and values.
    pub projection: Products,
    /// On the queries, before they turn.
    pub query_norm: Option<Norm>,
    /// On the keys, before they turn.
    pub key_norm: Option<Norm>,
    /// From the mixed values to the stream.
    pub output: Linear,
    /// Heads, scale, window.
    pub spec: AttentionSpec,
    /// Index of the model's rotary table; None: this layer does not rotate.
    pub rotary: Option<usize>,
}

/// What the backward pass reads.
#[derive(Debug)]
pub struct AttentionSaved {
    input: Tensor,
    projected: Projected,
    /// Attention's result before the output product.
    mixed: Tensor,
    /// Logarithm of each query's sum of exponentials.
    lse: Tensor,
    output: LinearSaved,
}

#[derive(Debug)]
struct Projected {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    saved: ProductsSaved,
    query_norm: Option<NormSaved>,
    key_norm: Option<NormSaved>,
}

/// Keys and values of one layer for one growing sequence, `[capacity, G·D]`.
#[derive(Debug)]
pub struct LayerCache {
    /// Normed and rotated.
    pub keys: Tensor,
    /// As projected.
    pub values: Tensor,
}

impl Attention {
    /// The branch's result for its input `[N, C]`, and what the backward pass
    /// reads.
    pub fn forward(&self, cx: &Forward, input: Tensor) -> Result<(Tensor, AttentionSaved)> {
        let projected = self.project(cx, &input)?;
        let Projected { q, k, v, .. } = &projected;
        let (mixed, lse) = cx.device.attention(q, k, v, &cx.batch.segments, &self.spec)?;
        let (y, output) = self.output.forward(cx, &mixed)?;
        Ok((y, AttentionSaved { input, projected, mixed, lse, output }))
    }

    /// The gradient of the branch's input, if it is wanted.
    pub fn backward(
        &self,
        cx: &mut Backward,
        dy: &Tensor,
        saved: &AttentionSaved,
        input_gradient: InputGradient,
    ) -> Result<Option<Tensor>> {
        let AttentionSaved { input, projected, mixed, lse, output } = saved;
        let Projected { q, k, v, .. } = projected;
        let dmixed = self.output.backward(cx, dy, mixed, output, None)?;
        let segments = &cx.forward.batch.segments;
        let (mut dq, mut dk, dv) =
            cx.forward.device.attention_backward(&dmixed, q, k, v, mixed, lse, segments, &self.spec)?;
        drop(dmixed);
        if let Some(table) = self.table(cx.forward.tables) {
            cx.forward.device.rotary(&mut dq, &cx.forward.batch.positions, table, self.spec.head_dim, true)?;
            cx.forward.device.rotary(&mut dk, &cx.forward.batch.positions, table, self.spec.head_dim, true)?;
        }
        if let Some((norm, saved)) = self.query_norm.as_ref().zip(projected.query_norm.as_ref()) {
            dq = norm.backward(cx, &dq, saved, None)?;
        }
        if let Some((norm, saved)) = self.key_norm.as_ref().zip(projected.key_norm.as_ref()) {
            dk = norm.backward(cx, &dk, saved, None)?;
        }
        let d = [dq, dk, dv];
        match input_gradient {
            InputGradient::Wanted => self.projection.backward(cx, &d, input, &projected.saved).map(Some),
            InputGradient::Unwanted => {
                self.projection.backward_parameters(cx, &d, input, &projected.saved)?;
                Ok(None)
            }
        }
    }

    /// The branch's result for the last tokens of a sequence, whose cache then
    /// holds `length` rows.
    pub fn decode(&self, cx: &Forward, input: &Tensor, cache: &mut LayerCache, length: usize) -> Result<Tensor> {
        let Projected { q, k, v, .. } = self.project(cx, input)?;
        let first = length - input.rows();
        cx.device.write_rows(&mut cache.keys, first, &k)?;
        cx.device.write_rows(&mut cache.values, first, &v)?;
        let mixed = cx.device.attention_cached(&q, &cache.keys, &cache.values, length, &self.spec)?;
        Ok(self.output.forward(cx, &mixed)?.0)
    }

    fn project(&self, cx: &Forward, input: &Tensor) -> Result<Projected> {
        let ([mut q, mut k, v], saved) = self.projection.forward(cx, input)?;
        let (mut query_norm, mut key_norm) = (None, None);
        if let Some(norm) = &self.query_norm {
            let (normed, saved) = norm.forward(cx, q)?;
            (q, query_norm) = (normed, Some(saved));
        }
        if let Some(norm) = &self.key_norm {
            let (normed, saved) = norm.forward(cx, k)?;
            (k, key_norm) = (normed, Some(saved));
        }
        if let Some(table) = self.table(cx.tables) {
            cx.device.rotary(&mut q, &cx.batch.positions, table, self.spec.head_dim, false)?;
            cx.device.rotary(&mut k, &cx.batch.positions, table, self.spec.head_dim, false)?;
        }
        Ok(Projected { q, k, v, saved, query_norm, key_norm })
    }

    fn table<'a>(&self, tables: &'a [RotaryTable]) -> Option<&'a RotaryTable> {
        self.rotary.and_then(|index| tables.get(index))
    }
}
