//! A linear layer with its adapter: LoRA (Hu et al. 2021, arXiv:2106.09685),
//! rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) and DoRA (Liu et al. 2024,
//! arXiv:2402.09353), with the conventions of PEFT.
//!
//! With `t = s · dropout(x) Aᵀ Bᵀ`:
//! - LoRA: `y = x Wᵀ + b + t`;
//! - DoRA: `y = b + x Wᵀ + (g − 1) ⊙ (dropout(x) Wᵀ) + g ⊙ t`, where
//!   `g = m / ‖W + s B A‖` row by row, and the norm is a constant of the
//!   backward pass (section 4.3 of the paper, and PEFT).

use finetuned_shaders::{Device, Tensor, TensorError};

use super::context::{Backward, Forward, Pass};
use super::parameters::ParameterId;
use super::streams;

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
    /// R.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// The scale is alpha / √rank instead of alpha / rank.
    pub rslora: bool,
    /// What the product of the factors is multiplied by.
    pub scale: f32,
    /// Share of the adapter's inputs that training sets to zero.
    pub dropout: f32,
}

/// `y = x Wᵀ + b`, and an adapter's share.
#[derive(Debug, Clone)]
pub struct Linear {
    /// Module path as in the checkpoint, without `.weight`.
    pub module: String,
    /// `[out, in]`.
    pub weight: ParameterId,
    /// `[out]`.
    pub bias: Option<ParameterId>,
    /// Width of x.
    pub inputs: usize,
    /// Width of y.
    pub outputs: usize,
    /// Beside the weight, if the layer is adapted.
    pub adapter: Option<Adapter>,
    /// Number of this layer in the model: its place in the random streams.
    pub place: u32,
}

/// What the backward pass needs beside the layer's input: nothing without an
/// adapter.
#[derive(Debug)]
pub struct LinearSaved(Option<AdapterSaved>);

#[derive(Debug)]
struct AdapterSaved {
    /// dropout(x) Aᵀ `[N, R]`.
    low: Tensor,
    dora: Option<DoraSaved>,
}

#[derive(Debug)]
struct DoraSaved {
    magnitude: ParameterId,
    /// g `[out]`.
    gain: Tensor,
    /// ‖W + s B A‖ row by row `[out]`.
    norm: Tensor,
    /// dropout(x) Wᵀ + t `[N, out]`.
    inner: Tensor,
}

impl Linear {
    /// y `[N, out]` of x `[N, in]`, and what the backward pass reads.
    pub fn forward(&self, cx: &Forward, x: &Tensor) -> Result<(Tensor, LinearSaved)> {
        let y = cx.device.linear(x, cx.parameters.weight(self.weight))?;
        let (mut y, saved) = match self.adapter.as_ref().filter(|_| cx.pass.adapters) {
            Some(adapter) => {
                let (y, saved) = self.adapted(cx, adapter, x, y)?;
                (y, Some(saved))
            }
            None => (y, None),
        };
        if let Some(bias) = self.bias {
            cx.device.add_bias(&mut y, cx.parameters.tensor(bias)?)?;
        }
        Ok((y, LinearSaved(saved)))
    }

    /// The adapter's share added to y, the product of the weight.
    fn adapted(&self, cx: &Forward, adapter: &Adapter, x: &Tensor, mut y: Tensor) -> Result<(Tensor, AdapterSaved)> {
        let device = cx.device;
        let weight = cx.parameters.weight(self.weight);
        let dropped = self.dropped(device, adapter, x, &cx.pass)?;
        let input = dropped.as_ref().unwrap_or(x);
        let a = cx.parameters.tensor(adapter.a)?;
        let b = cx.parameters.tensor(adapter.b)?;
        let low = device.matmul(input, false, a, true, 1.0, None)?;
        let Some(magnitude) = adapter.magnitude else {
            y = device.matmul(&low, false, b, true, adapter.scale, Some(y))?;
            return Ok((y, AdapterSaved { low, dora: None }));
        };
        let norm = device.dora_norm(weight, a, b, adapter.scale)?;
        let gain = device.divide(cx.parameters.tensor(magnitude)?, &norm)?;
        let inner = match &dropped {
            Some(dropped) => {
                let base = device.linear(dropped, weight)?;
                let inner = device.matmul(&low, false, b, true, adapter.scale, Some(device.copy(&base)?))?;
                let scaled = device.scale_columns(&inner, &gain)?;
                device.add_scaled(&mut y, &scaled, 1.0)?;
                device.add_scaled(&mut y, &base, -1.0)?;
                inner
            }
            None => {
                let inner = device.matmul(&low, false, b, true, adapter.scale, Some(y))?;
                y = device.scale_columns(&inner, &gain)?;
                inner
            }
        };
        Ok((y, AdapterSaved { low, dora: Some(DoraSaved { magnitude, gain, norm, inner }) }))
    }

    /// Adds to the parameters' gradients. Returns dx added to `into`.
    pub fn backward(
        &self,
        cx: &mut Backward,
        dy: &Tensor,
        x: &Tensor,
        saved: &LinearSaved,
        into: Option<Tensor>,
    ) -> Result<Tensor> {
        self.base_gradients(cx, dy, x)?;
        let (device, parameters) = (cx.forward.device, cx.forward.parameters);
        let weight = parameters.weight(self.weight);
        let Some((adapter, saved)) = self.adapter.as_ref().zip(saved.0.as_ref()) else {
            return device.linear_backward(dy, weight, into);
        };
        let dropped = self.dropped(device, adapter, x, &cx.forward.pass)?;
        let gained = self.gained(cx, saved, dy)?;
        let mut dx = match (&gained, &dropped) {
            (None, _) => device.linear_backward(dy, weight, into)?,
            (Some(gained), None) => device.linear_backward(gained, weight, into)?,
            (Some(gained), Some(_)) => {
                let mut dx = device.linear_backward(dy, weight, into)?;
                let mut excess = device.copy(gained)?;
                device.add_scaled(&mut excess, dy, -1.0)?;
                let through = device.linear_backward(&excess, weight, None)?;
                let through =
                    device.dropout(&through, adapter.dropout, streams::dropout(&cx.forward.pass, self.place))?;
                device.add_scaled(&mut dx, &through, 1.0)?;
                dx
            }
        };
        let input = dropped.as_ref().unwrap_or(x);
        let dlow = factor_gradients(cx, adapter, saved, gained.as_ref().unwrap_or(dy), input)?;
        let a = parameters.tensor(adapter.a)?;
        if dropped.is_none() {
            return device.matmul(&dlow, false, a, false, 1.0, Some(dx));
        }
        let through = device.matmul(&dlow, false, a, false, 1.0, None)?;
        let through = device.dropout(&through, adapter.dropout, streams::dropout(&cx.forward.pass, self.place))?;
        device.add_scaled(&mut dx, &through, 1.0)?;
        Ok(dx)
    }

    /// Adds to the parameters' gradients, if nothing below the layer is
    /// trained.
    pub fn backward_parameters(&self, cx: &mut Backward, dy: &Tensor, x: &Tensor, saved: &LinearSaved) -> Result<()> {
        self.base_gradients(cx, dy, x)?;
        let Some((adapter, saved)) = self.adapter.as_ref().zip(saved.0.as_ref()) else { return Ok(()) };
        let dropped = self.dropped(cx.forward.device, adapter, x, &cx.forward.pass)?;
        let gained = self.gained(cx, saved, dy)?;
        let input = dropped.as_ref().unwrap_or(x);
        factor_gradients(cx, adapter, saved, gained.as_ref().unwrap_or(dy), input).map(drop)
    }

    /// The bias's and the weight's gradients, if they are trained.
    fn base_gradients(&self, cx: &mut Backward, dy: &Tensor, x: &Tensor) -> Result<()> {
        if let Some(dbias) = self.bias.and_then(|bias| cx.gradients.get_mut(bias)) {
            cx.forward.device.bias_backward(dy, dbias)?;
        }
        if let Some(dweight) = cx.gradients.get_mut(self.weight) {
            cx.forward.device.linear_weight_backward(dy, x, dweight)?;
        }
        Ok(())
    }

    /// The gradient behind DoRA's gain, and the magnitude's own; None for LoRA,
    /// which has no gain.
    fn gained(&self, cx: &mut Backward, saved: &AdapterSaved, dy: &Tensor) -> Result<Option<Tensor>> {
        let Some(DoraSaved { magnitude, gain, norm, inner }) = &saved.dora else { return Ok(None) };
        let device = cx.forward.device;
        if let Some(dmagnitude) = cx.gradients.get_mut(*magnitude) {
            let mut dgain = device.zeros(&[self.outputs])?;
            device.column_dot(dy, inner, &mut dgain)?;
            device.add_scaled(dmagnitude, &device.divide(&dgain, norm)?, 1.0)?;
        }
        device.scale_columns(dy, gain).map(Some)
    }

    /// dropout(x), if dropout acts. The backward pass computes it again from the
    /// same key.
    fn dropped(&self, device: &Device, adapter: &Adapter, x: &Tensor, pass: &Pass) -> Result<Option<Tensor>> {
        if pass.training && adapter.dropout > 0.0 {
            device.dropout(x, adapter.dropout, streams::dropout(pass, self.place)).map(Some)
        } else {
            Ok(None)
        }
    }
}

/// Adds to the factors' gradients, from dt `[N, out]` of the product of the
/// factors. Returns the gradient of dropout(x) Aᵀ `[N, R]`.
fn factor_gradients(
    cx: &mut Backward,
    adapter: &Adapter,
    saved: &AdapterSaved,
    dt: &Tensor,
    input: &Tensor,
) -> Result<Tensor> {
    let device = cx.forward.device;
    let dlow = device.matmul(dt, false, cx.forward.parameters.tensor(adapter.b)?, false, adapter.scale, None)?;
    cx.gradients.accumulate(adapter.b, |db| device.matmul(dt, true, &saved.low, false, adapter.scale, Some(db)))?;
    cx.gradients.accumulate(adapter.a, |da| device.matmul(&dlow, true, input, false, 1.0, Some(da)))?;
    Ok(dlow)
}
