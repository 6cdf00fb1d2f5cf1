//! The decoder: embedding, layers, final norm, LM head; forward, backward and
//! one step of generation.

use finetuned_formats::ModelConfig;
use finetuned_shaders::{Device, Head, Reading, RotaryTable, Segments, Tensor, TensorError};

use super::block::{Block, BlockSaved, LayerCache, Layout};
use super::linear::{Linear, Pass};
use super::norm::Norm;
use super::parameters::{Gradients, ParameterId, Parameters};
use super::value::ValueHead;

type Result<T> = std::result::Result<T, TensorError>;

/// A micro-batch: the tokens of all its documents, one after another.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    pub tokens: Vec<u32>,
    pub segments: Segments,
    /// Position of each token in its document.
    pub positions: Vec<u32>,
}

impl Batch {
    pub fn from_documents<'a>(documents: impl IntoIterator<Item = &'a [u32]>) -> Batch {
        let mut tokens = Vec::new();
        let mut lengths = Vec::new();
        for document in documents {
            tokens.extend_from_slice(document);
            lengths.push(document.len());
        }
        let segments = Segments::from_lengths(lengths);
        let positions = segments.positions();
        Batch { tokens, segments, positions }
    }
}

pub struct Decoder {
    pub config: ModelConfig,
    pub parameters: Parameters,
    pub embedding: ParameterId,
    /// GPT-2's learned positions.
    pub position_embedding: Option<ParameterId>,
    pub embedding_scale: f32,
    pub blocks: Vec<Block>,
    pub final_norm: Norm,
    /// The embedding itself where the head is tied.
    pub head: ParameterId,
    /// A reward model's, beside the language-model head.
    pub value_head: Option<ValueHead>,
    pub tables: Vec<RotaryTable>,
    /// Positions that the rotary tables (or learned positions) reach.
    pub context: usize,
}

/// What a forward pass keeps for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    Nothing,
    /// All that the layers' backward passes read.
    Everything,
    /// Gradient checkpointing: each layer's input, from which the rest is computed
    /// again.
    Inputs,
    /// The same, waiting in host memory: the device holds one layer's input at a time.
    InputsOnHost,
}

/// What a layer keeps for its backward pass.
enum LayerSaved {
    Whole(Box<BlockSaved>),
    /// Gradient checkpointing: only the layer's input.
    Input(Tensor),
    /// Only the layer's input, in host memory.
    OnHost {
        shape: Vec<usize>,
        values: Vec<f32>,
    },
}

/// The state between forward and backward.
pub struct Forward {
    /// The residual stream after the last layer `[N, C]`.
    x: Tensor,
    layers: Vec<LayerSaved>,
}

/// The final norm at the rows that predict a wanted token.
pub struct HeadForward {
    rows: Vec<u32>,
    gathered: Tensor,
    /// `[M, C]`, the head's input.
    pub h: Tensor,
    statistics: Tensor,
}

/// Waits for an input that was on its way to the host.
fn arrived(leaving: Option<(Vec<usize>, Reading)>) -> Result<Option<LayerSaved>> {
    leaving.map(|(shape, values)| Ok(LayerSaved::OnHost { shape, values: values()? })).transpose()
}

impl Decoder {
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(Block::linears)
    }

    /// The LM head as an operation's argument.
    pub fn lm_head(&self) -> Head<'_> {
        Head { weight: self.parameters.weight(self.head), softcap: self.config.final_softcap, chunk_rows: 0 }
    }

    /// Runs all layers.
    pub fn forward(&self, ops: &Device, batch: &Batch, pass: &Pass, keep: Keep) -> Result<Forward> {
        self.check_positions(batch.segments.longest())?;
        let layout = self.layout(batch);
        let mut x = self.embed(ops, &batch.tokens, &batch.positions)?;
        let mut layers = Vec::with_capacity(self.blocks.len());
        // The input that is on its way to the host: its copy was queued before its
        // layer, and is waited for behind the next, so that the device never idles.
        let mut leaving: Option<(Vec<usize>, Reading)> = None;
        for block in &self.blocks {
            match keep {
                Keep::Inputs => layers.push(LayerSaved::Input(x.clone())),
                Keep::InputsOnHost => {
                    let next = (x.shape().to_vec(), ops.read_later(&x)?);
                    layers.extend(arrived(leaving.replace(next))?);
                }
                Keep::Nothing | Keep::Everything => {}
            }
            let (y, saved) = block.forward(ops, &self.parameters, x, &layout, pass)?;
            if keep == Keep::Everything {
                layers.push(LayerSaved::Whole(Box::new(saved)));
            }
            x = y;
        }
        layers.extend(arrived(leaving)?);
        Ok(Forward { x, layers })
    }

    /// The final norm at these rows of the stream.
    pub fn head_input(&self, ops: &Device, forward: &Forward, rows: &[u32]) -> Result<HeadForward> {
        let gathered = ops.gather_rows(&forward.x, rows)?;
        let (h, statistics) = self.final_norm.forward(ops, &self.parameters, &gathered)?;
        Ok(HeadForward { rows: rows.to_vec(), gathered, h, statistics })
    }

    /// Adds every trainable parameter's gradient, from dh `[M, C]` of the head's
    /// input.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        ops: &Device,
        batch: &Batch,
        forward: Forward,
        head: HeadForward,
        dh: &Tensor,
        gradients: &mut Gradients,
        pass: &Pass,
    ) -> Result<()> {
        let p = &self.parameters;
        let layout = self.layout(batch);
        let rows = forward.x.rows();
        let dgathered = self.final_norm.backward(ops, p, gradients, dh, &head.gathered, &head.statistics, None)?;
        let mut dx = ops.scatter_rows(rows, &head.rows, &dgathered)?;
        drop((head, dgathered, forward.x));
        let embedding_wanted =
            gradients.wanted(self.embedding) || self.position_embedding.is_some_and(|id| gradients.wanted(id));
        for (i, (block, saved)) in self.blocks.iter().zip(forward.layers).enumerate().rev() {
            let saved = match saved {
                LayerSaved::Whole(saved) => *saved,
                LayerSaved::Input(x) => block.forward(ops, p, x, &layout, pass)?.1,
                LayerSaved::OnHost { shape, values } => {
                    let x = ops.upload(&shape, &values)?;
                    block.forward(ops, p, x, &layout, pass)?.1
                }
            };
            let below = i > 0 || embedding_wanted;
            match block.backward(ops, p, gradients, dx, saved, &layout, below, pass)? {
                Some(next) => dx = next,
                None => return Ok(()),
            }
        }
        if let Some(dtable) = gradients.get_mut(self.embedding) {
            ops.embedding_backward(&batch.tokens, &dx, self.embedding_scale, dtable)?;
        }
        if let Some(id) = self.position_embedding
            && let Some(dtable) = gradients.get_mut(id)
        {
            ops.embedding_backward(&batch.positions, &dx, 1.0, dtable)?;
        }
        Ok(())
    }

    /// The logits `[rows, V]` of a batch at these rows, for tests, comparisons
    /// and short prompts: the whole matrix exists.
    pub fn logits(&self, ops: &Device, batch: &Batch, rows: &[u32], pass: &Pass) -> Result<Tensor> {
        let forward = self.forward(ops, batch, pass, Keep::Nothing)?;
        let head = self.head_input(ops, &forward, rows)?;
        ops.logits(&head.h, &self.lm_head())
    }

    /// The value head's number for each document of the batch, read at its last
    /// token; None where the model has no such head.
    pub fn values(&self, ops: &Device, batch: &Batch, pass: &Pass) -> Result<Option<Vec<f32>>> {
        let Some(value_head) = &self.value_head else { return Ok(None) };
        let forward = self.forward(ops, batch, pass, Keep::Nothing)?;
        let last: Vec<u32> = batch.segments.ranges().map(|range| (range.end - 1) as u32).collect();
        let head = self.head_input(ops, &forward, &last)?;
        ops.read(&value_head.forward(ops, &self.parameters, &head.h)?).map(Some)
    }

    /// Empty caches for a sequence of at most `capacity` tokens.
    pub fn caches(&self, ops: &Device, capacity: usize) -> Result<Vec<LayerCache>> {
        self.check_positions(capacity)?;
        self.blocks
            .iter()
            .map(|block| {
                let width = block.attention.kv_heads * block.attention.head_dim;
                Ok(LayerCache { keys: ops.zeros(&[capacity, width])?, values: ops.zeros(&[capacity, width])? })
            })
            .collect()
    }

    /// The logits `[V]` after `tokens`, which follow the `length` tokens that
    /// the caches hold.
    pub fn decode(
        &self,
        ops: &Device,
        tokens: &[u32],
        caches: &mut [LayerCache],
        length: usize,
        pass: &Pass,
    ) -> Result<Tensor> {
        let end = length + tokens.len();
        self.check_positions(end)?;
        let positions: Vec<u32> = (length..end).map(|i| i as u32).collect();
        let mut x = self.embed(ops, tokens, &positions)?;
        for (block, cache) in self.blocks.iter().zip(caches) {
            x = block.decode(ops, &self.parameters, &x, cache, end, &self.tables, pass)?;
        }
        let last = ops.gather_rows(&x, &[tokens.len().saturating_sub(1) as u32])?;
        let (h, _) = self.final_norm.forward(ops, &self.parameters, &last)?;
        ops.logits(&h, &self.lm_head())
    }

    fn embed(&self, ops: &Device, tokens: &[u32], positions: &[u32]) -> Result<Tensor> {
        let mut x = ops.embedding(tokens, self.parameters.tensor(self.embedding)?, self.embedding_scale)?;
        if let Some(id) = self.position_embedding {
            let learned = ops.embedding(positions, self.parameters.tensor(id)?, 1.0)?;
            ops.add_scaled(&mut x, &learned, 1.0)?;
        }
        Ok(x)
    }

    fn layout<'a>(&'a self, batch: &'a Batch) -> Layout<'a> {
        Layout { segments: &batch.segments, positions: &batch.positions, tables: &self.tables }
    }

    fn check_positions(&self, longest: usize) -> Result<()> {
        if longest > self.context {
            return Err(TensorError::Shape {
                op: "decoder",
                expected: format!("at most {} tokens in a sequence", self.context),
                got: longest.to_string(),
            });
        }
        Ok(())
    }
}
