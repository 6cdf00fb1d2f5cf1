//! All of a model's numbers in one list, addressed by id.
//!
//! Forward and backward borrow the list, gradients live beside it, and only the
//! optimizer writes. A tied head is the embedding's id used twice.

use finetuned_shaders::{Device, Tensor, TensorError, Weight};

/// A place in [`Parameters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParameterId(pub usize);

/// What a parameter is, which decides how it is stored and decayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Embedding,
    Linear,
    Bias,
    Norm,
    /// A factor or magnitude of an adapter.
    Adapter,
    /// The one row that makes a value of a hidden state.
    ValueHead,
}

#[derive(Debug, Clone)]
pub struct Parameter {
    /// Checkpoint name (`model.layers.0.self_attn.q_proj.weight`), or the name
    /// in the PEFT file for an adapter's.
    pub name: String,
    pub role: Role,
    pub value: Weight,
    pub shape: Vec<usize>,
    pub trainable: bool,
    /// Stored transposed in the checkpoint (GPT-2's Conv1D).
    pub transposed_on_disk: bool,
}

impl Parameter {
    /// Whether this is the value head.
    pub fn is_value_head(&self) -> bool {
        self.role == Role::ValueHead
    }
}

#[derive(Debug, Clone, Default)]
pub struct Parameters {
    list: Vec<Parameter>,
}

impl Parameters {
    pub fn push(&mut self, parameter: Parameter) -> ParameterId {
        self.list.push(parameter);
        ParameterId(self.list.len() - 1)
    }

    pub fn get(&self, id: ParameterId) -> &Parameter {
        &self.list[id.0]
    }

    pub fn get_mut(&mut self, id: ParameterId) -> &mut Parameter {
        &mut self.list[id.0]
    }

    pub fn weight(&self, id: ParameterId) -> &Weight {
        &self.list[id.0].value
    }

    /// A parameter that is kept dense.
    ///
    /// # Errors
    /// One that is kept in 4 bits.
    pub fn tensor(&self, id: ParameterId) -> Result<&Tensor, TensorError> {
        dense(&self.list[id.0].value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (ParameterId, &Parameter)> {
        self.list.iter().enumerate().map(|(i, p)| (ParameterId(i), p))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (ParameterId, &mut Parameter)> {
        self.list.iter_mut().enumerate().map(|(i, p)| (ParameterId(i), p))
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Ids of what is trained, in the order of the list.
    pub fn trainable(&self) -> Vec<ParameterId> {
        self.iter().filter(|(_, p)| p.trainable).map(|(id, _)| id).collect()
    }

    /// Numbers in all, and numbers trained.
    pub fn counts(&self) -> (u64, u64) {
        let size = |p: &Parameter| p.shape.iter().product::<usize>() as u64;
        let all = self.list.iter().map(size).sum();
        let trained = self.list.iter().filter(|p| p.trainable).map(size).sum();
        (all, trained)
    }
}

fn dense(weight: &Weight) -> Result<&Tensor, TensorError> {
    match weight {
        Weight::Dense(tensor) => Ok(tensor),
        Weight::Nf4(_) => Err(TensorError::Type { op: "parameter", expected: "dense elements", got: "nf4" }),
    }
}

/// Gradients of the trainable parameters, by parameter id.
#[derive(Debug, Default)]
pub struct Gradients {
    list: Vec<Option<Tensor>>,
}

impl Gradients {
    /// Zeros for every trainable parameter.
    ///
    /// # Errors
    /// No memory.
    pub fn zeros(ops: &Device, parameters: &Parameters) -> Result<Gradients, TensorError> {
        let list = parameters
            .iter()
            .map(|(_, p)| if p.trainable { ops.zeros(&p.shape).map(Some) } else { Ok(None) })
            .collect::<Result<_, _>>()?;
        Ok(Gradients { list })
    }

    /// Sets every gradient to zero, keeping the storage.
    pub fn clear(&mut self, ops: &Device) -> Result<(), TensorError> {
        self.list.iter_mut().flatten().try_for_each(|g| ops.fill_zero(g))
    }

    pub fn wanted(&self, id: ParameterId) -> bool {
        self.list.get(id.0).is_some_and(Option::is_some)
    }

    pub fn get(&self, id: ParameterId) -> Option<&Tensor> {
        self.list.get(id.0).and_then(Option::as_ref)
    }

    pub fn get_mut(&mut self, id: ParameterId) -> Option<&mut Tensor> {
        self.list.get_mut(id.0).and_then(Option::as_mut)
    }

    /// Two different gradients at once (a norm's weight and bias).
    pub fn pair_mut(&mut self, a: ParameterId, b: ParameterId) -> Option<(&mut Tensor, &mut Tensor)> {
        if a == b {
            return None;
        }
        let (low, high) = if a < b { (a.0, b.0) } else { (b.0, a.0) };
        let (left, right) = self.list.split_at_mut_checked(high)?;
        let first = left.get_mut(low)?.as_mut()?;
        let second = right.first_mut()?.as_mut()?;
        Some(if a < b { (first, second) } else { (second, first) })
    }

    /// Replaces a gradient by what `add` makes of it: accumulators are handed to
    /// an operation and come back.
    pub fn accumulate(
        &mut self,
        id: ParameterId,
        add: impl FnOnce(Tensor) -> Result<Tensor, TensorError>,
    ) -> Result<(), TensorError> {
        if let Some(slot) = self.list.get_mut(id.0)
            && let Some(gradient) = slot.take()
        {
            *slot = Some(add(gradient)?);
        }
        Ok(())
    }

    pub fn iter(&self) -> impl Iterator<Item = (ParameterId, &Tensor)> {
        self.list.iter().enumerate().filter_map(|(i, g)| g.as_ref().map(|g| (ParameterId(i), g)))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (ParameterId, &mut Tensor)> {
        self.list.iter_mut().enumerate().filter_map(|(i, g)| g.as_mut().map(|g| (ParameterId(i), g)))
    }
}
