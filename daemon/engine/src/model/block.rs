//! One decoder layer: attention and MLP around the residual stream.
//!
//! All families are this one layer with other parts: which norms there are and
//! where, whether q, k and v (or gate and up) are one product, whether queries
//! and keys are normed, which rotary table turns them.

use finetuned_shaders::{Tensor, TensorError};

use super::attention::{Attention, AttentionSaved, LayerCache};
use super::context::{Backward, Forward, InputGradient};
use super::linear::Linear;
use super::mlp::{Mlp, MlpSaved};
use super::norm::{Norm, NormSaved};

type Result<T> = std::result::Result<T, TensorError>;

/// One decoder layer.
#[derive(Debug, Clone)]
pub struct Block {
    /// On what attention reads of the stream.
    pub norm_attention: Option<Norm>,
    /// The attention branch.
    pub attention: Attention,
    /// On attention's result, before it joins the stream.
    pub post_attention: Option<Norm>,
    /// On what the MLP reads of the stream.
    pub norm_mlp: Option<Norm>,
    /// The feed-forward branch.
    pub mlp: Mlp,
    /// On the MLP's result, before it joins the stream.
    pub post_mlp: Option<Norm>,
}

/// Everything that the backward pass of a layer reads.
#[derive(Debug)]
pub struct BlockSaved {
    norm_attention: Option<NormSaved>,
    attention: AttentionSaved,
    post_attention: Option<NormSaved>,
    norm_mlp: Option<NormSaved>,
    mlp: MlpSaved,
    post_mlp: Option<NormSaved>,
}

impl Block {
    /// y of the layer, and what the backward pass reads.
    pub fn forward(&self, cx: &Forward, x: Tensor) -> Result<(Tensor, BlockSaved)> {
        let (input, norm_attention) = normed(cx, self.norm_attention.as_ref(), x.clone())?;
        let (branch, attention) = self.attention.forward(cx, input)?;
        let (branch, post_attention) = normed(cx, self.post_attention.as_ref(), branch)?;
        let middle = joined(cx, &x, branch)?;
        let (input, norm_mlp) = normed(cx, self.norm_mlp.as_ref(), middle.clone())?;
        let (branch, mlp) = self.mlp.forward(cx, input)?;
        let (branch, post_mlp) = normed(cx, self.post_mlp.as_ref(), branch)?;
        let y = joined(cx, &middle, branch)?;
        Ok((y, BlockSaved { norm_attention, attention, post_attention, norm_mlp, mlp, post_mlp }))
    }

    /// dx of the layer, if it is wanted.
    pub fn backward(
        &self,
        cx: &mut Backward,
        dy: Tensor,
        saved: BlockSaved,
        input_gradient: InputGradient,
    ) -> Result<Option<Tensor>> {
        // MLP branch; dy also runs past it along the residual stream.
        let dbranch = before(cx, self.post_mlp.as_ref(), saved.post_mlp.as_ref(), &dy)?;
        let dinput = self.mlp.backward(cx, dbranch.as_ref().unwrap_or(&dy), &saved.mlp)?;
        drop((dbranch, saved.mlp));
        let dmiddle = split(cx, self.norm_mlp.as_ref(), saved.norm_mlp.as_ref(), dinput, dy)?;

        // Attention branch. A norm that is trained needs its own gradient, whatever
        // is below.
        let dbranch = before(cx, self.post_attention.as_ref(), saved.post_attention.as_ref(), &dmiddle)?;
        let trained = self.norm_attention.as_ref().is_some_and(|norm| cx.gradients.wanted(norm.weight));
        let wanted = if trained { InputGradient::Wanted } else { input_gradient };
        let dinput = self.attention.backward(cx, dbranch.as_ref().unwrap_or(&dmiddle), &saved.attention, wanted)?;
        drop(dbranch);
        dinput
            .map(|dinput| split(cx, self.norm_attention.as_ref(), saved.norm_attention.as_ref(), dinput, dmiddle))
            .transpose()
    }

    /// One step of generation: `x [n, C]` are the last `n` tokens of a sequence
    /// whose cache then holds `length` rows.
    pub fn decode(&self, cx: &Forward, x: &Tensor, cache: &mut LayerCache, length: usize) -> Result<Tensor> {
        let (input, _) = normed(cx, self.norm_attention.as_ref(), x.clone())?;
        let branch = self.attention.decode(cx, &input, cache, length)?;
        let (branch, _) = normed(cx, self.post_attention.as_ref(), branch)?;
        let middle = joined(cx, x, branch)?;
        let (input, _) = normed(cx, self.norm_mlp.as_ref(), middle.clone())?;
        let (branch, _) = self.mlp.forward(cx, input)?;
        let (branch, _) = normed(cx, self.post_mlp.as_ref(), branch)?;
        joined(cx, &middle, branch)
    }

    /// Every linear layer, in a fixed order.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let Attention { projection, output, .. } = &self.attention;
        let attention = projection.linears().iter().chain([output]);
        attention.chain(self.mlp.input.linears()).chain([&self.mlp.output])
    }

    /// As [`Block::linears`].
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let Attention { projection, output, .. } = &mut self.attention;
        let attention = projection.linears_mut().iter_mut().chain([output]);
        attention.chain(self.mlp.input.linears_mut()).chain([&mut self.mlp.output])
    }
}

/// x through a norm, if there is one.
fn normed(cx: &Forward, norm: Option<&Norm>, x: Tensor) -> Result<(Tensor, Option<NormSaved>)> {
    match norm {
        None => Ok((x, None)),
        Some(norm) => norm.forward(cx, x).map(|(y, saved)| (y, Some(saved))),
    }
}

/// A branch added to the stream.
fn joined(cx: &Forward, stream: &Tensor, mut branch: Tensor) -> Result<Tensor> {
    cx.device.add_scaled(&mut branch, stream, 1.0)?;
    Ok(branch)
}

/// The gradient before a branch's post norm. None: there is no such norm, and
/// the stream's gradient is the branch's.
fn before(cx: &mut Backward, norm: Option<&Norm>, saved: Option<&NormSaved>, dy: &Tensor) -> Result<Option<Tensor>> {
    norm.zip(saved).map(|(norm, saved)| norm.backward(cx, dy, saved, None)).transpose()
}

/// The stream's gradient if a branch leaves it through a norm, or without
/// one: the branch's gradient and the gradient of the stream beyond together.
fn split(
    cx: &mut Backward,
    norm: Option<&Norm>,
    saved: Option<&NormSaved>,
    mut dinput: Tensor,
    dstream: Tensor,
) -> Result<Tensor> {
    match norm.zip(saved) {
        Some((norm, saved)) => norm.backward(cx, &dinput, saved, Some(dstream)),
        None => {
            cx.forward.device.add_scaled(&mut dinput, &dstream, 1.0)?;
            Ok(dinput)
        }
    }
}
