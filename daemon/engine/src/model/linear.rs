//! A linear layer with its adapter: LoRA (Hu et al. 2021, arXiv:2106.09685),
//! rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) and DoRA (Liu et al. 2024,
//! arXiv:2402.09353), with the conventions of PEFT.
//!
//! With `t = s · dropout(x) Aᵀ Bᵀ`:
//! - LoRA: `y = x Wᵀ + b + t`;
//! - DoRA: `y = b + x Wᵀ + (g − 1) ⊙ (dropout(x) Wᵀ) + g ⊙ t`, where
//!   `g = m / ‖W + s B A‖` row by row, the norm a constant of the backward pass
//!   (section 4.3 of the paper, and PEFT).

use finetuned_shaders::random::Key;
use finetuned_shaders::{Device, Tensor, TensorError};

use super::parameters::{Gradients, ParameterId, Parameters};

type Result<T> = std::result::Result<T, TensorError>;

/// The adapter of one layer.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// `[R, in]`.
    pub a: ParameterId,
    /// `[out, R]`.
    pub b: ParameterId,
    /// `[out]`, DoRA only.
    pub magnitude: Option<ParameterId>,
    pub rank: usize,
    pub alpha: f64,
    /// alpha / rank, or alpha / √rank.
    pub scale: f32,
    pub dropout: f32,
}

#[derive(Debug, Clone)]
pub struct Linear {
    /// Module path as in the checkpoint, without `.weight`.
    pub module: String,
    pub weight: ParameterId,
    pub bias: Option<ParameterId>,
    pub inputs: usize,
    pub outputs: usize,
    pub adapter: Option<Adapter>,
    /// Number of this layer in the model: its place in the random streams.
    pub place: u32,
}

/// What one pass is about.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    /// Dropout acts.
    pub training: bool,
    /// Adapters act; off, the model is its base.
    pub adapters: bool,
    pub seed: u64,
    pub step: u32,
    pub micro_batch: u32,
}

impl Pass {
    /// Evaluation: no dropout.
    pub fn evaluation(adapters: bool) -> Pass {
        Pass { training: false, adapters, seed: 0, step: 0, micro_batch: 0 }
    }

    fn key(&self, place: u32) -> Key {
        // Layers count in the low 16 bits, micro-batches above.
        Key::new(self.seed, self.step, (self.micro_batch << 16) | (place & 0xffff))
    }
}

/// What the backward pass needs beside the layer's input.
#[derive(Debug, Clone, Default)]
pub struct LinearSaved {
    /// dropout(x) Aᵀ `[N, R]`.
    low: Option<Tensor>,
    /// DoRA: g `[out]`, the norms `[out]` as host numbers, and
    /// `dropout(x) Wᵀ + t` `[N, out]`.
    dora: Option<(Tensor, Vec<f32>, Tensor)>,
}

impl LinearSaved {
    /// Bytes kept between forward and backward.
    pub fn bytes(&self) -> usize {
        self.low.as_ref().map_or(0, Tensor::bytes) + self.dora.as_ref().map_or(0, |d| d.2.bytes())
    }
}

impl Linear {
    pub fn forward(&self, ops: &Device, p: &Parameters, x: &Tensor, pass: &Pass) -> Result<(Tensor, LinearSaved)> {
        let mut y = ops.linear(x, p.weight(self.weight))?;
        let mut saved = LinearSaved::default();
        if let Some(adapter) = self.adapter.as_ref().filter(|_| pass.adapters) {
            let dropped = self.dropped(ops, adapter, x, pass)?;
            let input = dropped.as_ref().unwrap_or(x);
            let a = p.tensor(adapter.a)?;
            let b = p.tensor(adapter.b)?;
            let low = ops.matmul(input, false, a, true, 1.0, None)?;
            if let Some(magnitude) = adapter.magnitude {
                let norm = ops.read(&ops.dora_norm(p.weight(self.weight), a, b, adapter.scale)?)?;
                let m = ops.read(p.tensor(magnitude)?)?;
                let gain: Vec<f32> = m.iter().zip(&norm).map(|(m, n)| m / n).collect();
                let gain = ops.upload(&[self.outputs], &gain)?;
                match &dropped {
                    Some(dropped) => {
                        let base = ops.linear(dropped, p.weight(self.weight))?;
                        let inner = ops.matmul(&low, false, b, true, adapter.scale, Some(ops.copy(&base)?))?;
                        let scaled = ops.scale_columns(&inner, &gain)?;
                        ops.add_scaled(&mut y, &scaled, 1.0)?;
                        ops.add_scaled(&mut y, &base, -1.0)?;
                        saved.dora = Some((gain, norm, inner));
                    }
                    None => {
                        let inner = ops.matmul(&low, false, b, true, adapter.scale, Some(y))?;
                        y = ops.scale_columns(&inner, &gain)?;
                        saved.dora = Some((gain, norm, inner));
                    }
                }
            } else {
                y = ops.matmul(&low, false, b, true, adapter.scale, Some(y))?;
            }
            saved.low = Some(low);
        }
        if let Some(bias) = self.bias {
            ops.add_bias(&mut y, p.tensor(bias)?)?;
        }
        Ok((y, saved))
    }

    /// Adds to the parameters' gradients and returns dx added to `into`; with
    /// `input_gradient` false the gradient of the input is not computed and
    /// `into` comes back as it was.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        ops: &Device,
        p: &Parameters,
        g: &mut Gradients,
        dy: &Tensor,
        x: &Tensor,
        saved: &LinearSaved,
        into: Option<Tensor>,
        input_gradient: bool,
        pass: &Pass,
    ) -> Result<Option<Tensor>> {
        if let Some(bias) = self.bias
            && let Some(dbias) = g.get_mut(bias)
        {
            ops.bias_backward(dy, dbias)?;
        }
        if let Some(dweight) = g.get_mut(self.weight) {
            ops.linear_weight_backward(dy, x, dweight)?;
        }
        let Some(adapter) = self.adapter.as_ref().filter(|_| pass.adapters) else {
            return if input_gradient {
                ops.linear_backward(dy, p.weight(self.weight), into).map(Some)
            } else {
                Ok(into)
            };
        };
        let dropped = self.dropped(ops, adapter, x, pass)?;
        let mut dx = into;
        // The gradient that reaches t, and the base product's part of dx.
        let scaled;
        let dt = match &saved.dora {
            None => {
                if input_gradient {
                    dx = Some(ops.linear_backward(dy, p.weight(self.weight), dx)?);
                }
                dy
            }
            Some((gain, norm, inner)) => {
                if let Some(magnitude) = adapter.magnitude
                    && g.wanted(magnitude)
                {
                    let mut dgain = ops.zeros(&[self.outputs])?;
                    ops.column_dot(dy, inner, &mut dgain)?;
                    let dm: Vec<f32> = ops.read(&dgain)?.iter().zip(norm).map(|(d, n)| d / n).collect();
                    let dm = ops.upload(&[self.outputs], &dm)?;
                    if let Some(gradient) = g.get_mut(magnitude) {
                        ops.add_scaled(gradient, &dm, 1.0)?;
                    }
                }
                scaled = ops.scale_columns(dy, gain)?;
                if input_gradient {
                    match &dropped {
                        None => dx = Some(ops.linear_backward(&scaled, p.weight(self.weight), dx)?),
                        Some(_) => {
                            dx = Some(ops.linear_backward(dy, p.weight(self.weight), dx)?);
                            let mut excess = ops.copy(&scaled)?;
                            ops.add_scaled(&mut excess, dy, -1.0)?;
                            let through = ops.linear_backward(&excess, p.weight(self.weight), None)?;
                            let through = ops.dropout(&through, adapter.dropout, pass.key(self.place))?;
                            if let Some(dx) = dx.as_mut() {
                                ops.add_scaled(dx, &through, 1.0)?;
                            }
                        }
                    }
                }
                &scaled
            }
        };
        let low = saved.low.as_ref().ok_or(TensorError::Shape {
            op: "lora backward",
            expected: "the forward pass's low-rank product".into(),
            got: "none".into(),
        })?;
        let dlow = ops.matmul(dt, false, p.tensor(adapter.b)?, false, adapter.scale, None)?;
        g.accumulate(adapter.b, |db| ops.matmul(dt, true, low, false, adapter.scale, Some(db)))?;
        let input = dropped.as_ref().unwrap_or(x);
        g.accumulate(adapter.a, |da| ops.matmul(&dlow, true, input, false, 1.0, Some(da)))?;
        if input_gradient {
            let a = p.tensor(adapter.a)?;
            dx = Some(if dropped.is_some() {
                let through = ops.matmul(&dlow, false, a, false, 1.0, None)?;
                let through = ops.dropout(&through, adapter.dropout, pass.key(self.place))?;
                match dx {
                    Some(mut dx) => {
                        ops.add_scaled(&mut dx, &through, 1.0)?;
                        dx
                    }
                    None => through,
                }
            } else {
                ops.matmul(&dlow, false, a, false, 1.0, dx)?
            });
        }
        Ok(dx)
    }

    /// dropout(x), where dropout acts; computed again in the backward pass from
    /// the same key.
    fn dropped(&self, ops: &Device, adapter: &Adapter, x: &Tensor, pass: &Pass) -> Result<Option<Tensor>> {
        if pass.training && adapter.dropout > 0.0 {
            ops.dropout(x, adapter.dropout, pass.key(self.place)).map(Some)
        } else {
            Ok(None)
        }
    }
}
