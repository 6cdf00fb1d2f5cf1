//! Several products of one input: queries, keys and values, or gate and up.
//! A checkpoint stores them as a matrix each, or as one matrix for all.

use finetuned_shaders::{Tensor, TensorError};

use super::context::{Backward, Forward};
use super::linear::{Linear, LinearSaved};

type Result<T> = std::result::Result<T, TensorError>;

/// Products of one input.
#[derive(Debug, Clone)]
pub enum Products {
    /// A matrix each.
    Split(Vec<Linear>),
    /// One matrix, whose outputs are the products' side by side.
    Fused {
        /// The matrix.
        linear: Box<Linear>,
        /// Width of each product.
        widths: Vec<usize>,
    },
}

/// What the backward pass reads beside the input: one entry per matrix.
#[derive(Debug)]
pub struct ProductsSaved(Vec<LinearSaved>);

impl Products {
    /// The matrices in order.
    pub fn linears(&self) -> &[Linear] {
        match self {
            Products::Split(linears) => linears,
            Products::Fused { linear, .. } => std::slice::from_ref(linear),
        }
    }

    /// As [`Products::linears`].
    pub fn linears_mut(&mut self) -> &mut [Linear] {
        match self {
            Products::Split(linears) => linears,
            Products::Fused { linear, .. } => std::slice::from_mut(linear),
        }
    }

    /// The N products of x, and what the backward pass reads.
    ///
    /// # Errors
    /// A number of products other than N; a failing device.
    pub fn forward<const N: usize>(&self, cx: &Forward, x: &Tensor) -> Result<([Tensor; N], ProductsSaved)> {
        let mut all = Vec::with_capacity(N);
        let mut saved = Vec::with_capacity(N);
        for linear in self.linears() {
            let (y, kept) = linear.forward(cx, x)?;
            all.push(y);
            saved.push(kept);
        }
        if let (Products::Fused { widths, .. }, [joined]) = (self, all.as_slice()) {
            all = cx.device.split_columns(joined, widths)?;
        }
        let all = <[Tensor; N]>::try_from(all).map_err(|all| TensorError::Shape {
            op: "products",
            expected: format!("{N} products"),
            got: all.len().to_string(),
        })?;
        Ok((all, ProductsSaved(saved)))
    }

    /// Adds to the parameters' gradients. Returns the input's gradient.
    pub fn backward(&self, cx: &mut Backward, dy: &[Tensor], x: &Tensor, saved: &ProductsSaved) -> Result<Tensor> {
        let joined = self.joined(cx, dy)?;
        let mut dx = None;
        for ((linear, dy), saved) in self.linears().iter().zip(joined.as_deref().unwrap_or(dy)).zip(&saved.0) {
            dx = Some(linear.backward(cx, dy, x, saved, dx)?);
        }
        dx.ok_or_else(|| TensorError::Shape { op: "products", expected: "a product".into(), got: "none".into() })
    }

    /// Adds to the parameters' gradients, if nothing below is trained.
    pub fn backward_parameters(
        &self,
        cx: &mut Backward,
        dy: &[Tensor],
        x: &Tensor,
        saved: &ProductsSaved,
    ) -> Result<()> {
        let joined = self.joined(cx, dy)?;
        let dy = joined.as_deref().unwrap_or(dy);
        let mut all = self.linears().iter().zip(dy).zip(&saved.0);
        all.try_for_each(|((linear, dy), saved)| linear.backward_parameters(cx, dy, x, saved))
    }

    /// The products' gradients side by side, if one matrix made them.
    fn joined(&self, cx: &Backward, dy: &[Tensor]) -> Result<Option<Vec<Tensor>>> {
        match self {
            Products::Split(_) => Ok(None),
            Products::Fused { .. } => {
                let dy: Vec<&Tensor> = dy.iter().collect();
                Ok(Some(vec![cx.forward.device.join_columns(&dy)?]))
            }
        }
    }
}
