//! The decoder: embedding, layers, final norm, LM head; forward, backward and
//! one step of generation.

use finetuned_formats::ModelConfig;
use finetuned_plugin_api::optimizer::TensorKind;
use finetuned_shaders::{Device, Head, Reading, RotaryTable, Tensor, TensorError, Weight};

use super::attention::LayerCache;
use super::batch::TokenBatch;
use super::block::{Block, BlockSaved};
use super::context::{Backward, Forward, InputGradient, Pass};
use super::linear::Linear;
use super::norm::{Norm, NormSaved};
use super::parameters::{Gradients, Parameter, ParameterId, Parameters};
use super::value::ValueHead;

type Result<T> = std::result::Result<T, TensorError>;

/// A model on a device.
pub struct Decoder {
    pub config: ModelConfig,
    pub parameters: Parameters,
    pub embedding: ParameterId,
    /// GPT-2's learned positions.
    pub position_embedding: Option<ParameterId>,
    pub embedding_scale: f32,
    pub blocks: Vec<Block>,
    pub final_norm: Norm,
    /// The embedding itself if the head is tied.
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
pub struct Passed<'b> {
    batch: &'b TokenBatch,
    pass: Pass,
    /// The residual stream after the last layer `[N, C]`.
    x: Tensor,
    layers: Vec<LayerSaved>,
}

/// The final norm at the rows that predict a wanted token.
pub struct HeadInput {
    rows: Vec<u32>,
    /// `[M, C]`, the head's input.
    pub h: Tensor,
    norm: NormSaved,
}

/// Waits for an input that was on its way to the host.
fn arrived(leaving: Option<(Vec<usize>, Reading)>) -> Result<Option<LayerSaved>> {
    leaving.map(|(shape, values)| Ok(LayerSaved::OnHost { shape, values: values()? })).transpose()
}

impl Decoder {
    /// Puts a trainable value head of these values `[1, C]` on the model. `name` is
    /// what checkpoints and outputs call it: [`value::WEIGHT`](super::value::WEIGHT),
    /// or PEFT's key beside adapters.
    ///
    /// # Errors
    /// Another number of values than the model is wide; no memory.
    pub fn attach_value_head(&mut self, device: &Device, name: &str, values: &[f32]) -> Result<()> {
        let shape = [1, self.config.hidden_size];
        let weight = self.parameters.push(Parameter {
            name: name.to_string(),
            kind: TensorKind::ValueHead,
            value: Weight::Dense(device.upload(&shape, values)?),
            shape: shape.to_vec(),
            trainable: true,
            transposed_on_disk: false,
        });
        self.value_head = Some(ValueHead { weight });
        Ok(())
    }

    /// Every linear layer of the blocks, in a fixed order.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(Block::linears)
    }

    /// The LM head as an operation's argument.
    pub fn lm_head(&self) -> Head<'_> {
        Head { weight: self.parameters.weight(self.head), softcap: self.config.final_softcap, chunk_rows: 0 }
    }

    /// Runs all layers.
    ///
    /// # Errors
    /// A document longer than the context, no memory.
    pub fn forward<'b>(&self, device: &Device, batch: &'b TokenBatch, pass: &Pass, keep: Keep) -> Result<Passed<'b>> {
        self.check_positions(batch.segments.longest())?;
        let cx = self.context(device, batch, *pass);
        let mut x = self.embed(&cx)?;
        let mut layers = Vec::with_capacity(self.blocks.len());
        // The input that is on its way to the host: its copy was queued before its
        // layer, and is waited for after the next was queued, so that the device
        // never idles.
        let mut leaving: Option<(Vec<usize>, Reading)> = None;
        for block in &self.blocks {
            match keep {
                Keep::Inputs => layers.push(LayerSaved::Input(x.clone())),
                Keep::InputsOnHost => {
                    let next = (x.shape().to_vec(), device.read_later(&x)?);
                    layers.extend(arrived(leaving.replace(next))?);
                }
                Keep::Nothing | Keep::Everything => {}
            }
            let (y, saved) = block.forward(&cx, x)?;
            if keep == Keep::Everything {
                layers.push(LayerSaved::Whole(Box::new(saved)));
            }
            x = y;
        }
        layers.extend(arrived(leaving)?);
        Ok(Passed { batch, pass: *pass, x, layers })
    }

    /// The final norm at these rows of the stream.
    ///
    /// # Errors
    /// No memory.
    pub fn head_input(&self, device: &Device, passed: &Passed, rows: &[u32]) -> Result<HeadInput> {
        let gathered = device.gather_rows(&passed.x, rows)?;
        let cx = self.context(device, passed.batch, passed.pass);
        let (h, norm) = self.final_norm.forward(&cx, gathered)?;
        Ok(HeadInput { rows: rows.to_vec(), h, norm })
    }

    /// Adds every trainable parameter's gradient, from dh `[M, C]` of the head's
    /// input.
    ///
    /// # Errors
    /// No memory.
    pub fn backward(
        &self,
        device: &Device,
        passed: Passed,
        head: HeadInput,
        dh: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let Passed { batch, pass, x, layers } = passed;
        let rows = x.rows();
        let mut cx = Backward { forward: self.context(device, batch, pass), gradients };
        let dgathered = self.final_norm.backward(&mut cx, dh, &head.norm, None)?;
        let mut dx = device.scatter_rows(rows, &head.rows, &dgathered)?;
        drop((head, dgathered, x));
        let embedding_trained =
            cx.gradients.wanted(self.embedding) || self.position_embedding.is_some_and(|id| cx.gradients.wanted(id));
        for (i, (block, saved)) in self.blocks.iter().zip(layers).enumerate().rev() {
            let saved = match saved {
                LayerSaved::Whole(saved) => *saved,
                LayerSaved::Input(x) => block.forward(&cx.forward, x)?.1,
                LayerSaved::OnHost { shape, values } => {
                    let x = device.upload(&shape, &values)?;
                    block.forward(&cx.forward, x)?.1
                }
            };
            let below = if i > 0 || embedding_trained { InputGradient::Wanted } else { InputGradient::Unwanted };
            match block.backward(&mut cx, dx, saved, below)? {
                Some(next) => dx = next,
                None => return Ok(()),
            }
        }
        if let Some(dtable) = cx.gradients.get_mut(self.embedding) {
            device.embedding_backward(&batch.tokens, &dx, self.embedding_scale, dtable)?;
        }
        if let Some(dtable) = self.position_embedding.and_then(|id| cx.gradients.get_mut(id)) {
            device.embedding_backward(&batch.positions, &dx, 1.0, dtable)?;
        }
        Ok(())
    }

    /// The logits `[rows, V]` of a batch at these rows, for tests, comparisons
    /// and short prompts: the whole matrix exists.
    ///
    /// # Errors
    /// A document longer than the context, no memory.
    pub fn logits(&self, device: &Device, batch: &TokenBatch, rows: &[u32], pass: &Pass) -> Result<Tensor> {
        let passed = self.forward(device, batch, pass, Keep::Nothing)?;
        let head = self.head_input(device, &passed, rows)?;
        device.logits(&head.h, &self.lm_head())
    }

    /// The value head's number per document of the batch, read at its last
    /// token; None if the model has no such head.
    ///
    /// # Errors
    /// A document longer than the context, no memory.
    pub fn values(&self, device: &Device, batch: &TokenBatch, pass: &Pass) -> Result<Option<Vec<f32>>> {
        let Some(value_head) = &self.value_head else { return Ok(None) };
        let passed = self.forward(device, batch, pass, Keep::Nothing)?;
        let last: Vec<u32> = batch.segments.ranges().map(|range| (range.end - 1) as u32).collect();
        let head = self.head_input(device, &passed, &last)?;
        device.read(&value_head.forward(device, &self.parameters, &head.h)?).map(Some)
    }

    /// Empty caches for a sequence of at most `capacity` tokens.
    ///
    /// # Errors
    /// A capacity beyond the context, no memory.
    pub fn caches(&self, device: &Device, capacity: usize) -> Result<Vec<LayerCache>> {
        self.check_positions(capacity)?;
        self.blocks
            .iter()
            .map(|block| {
                let width = block.attention.spec.kv_heads * block.attention.spec.head_dim;
                Ok(LayerCache { keys: device.zeros(&[capacity, width])?, values: device.zeros(&[capacity, width])? })
            })
            .collect()
    }

    /// The logits `[V]` after `tokens`, which follow the `length` tokens that
    /// the caches hold.
    ///
    /// # Errors
    /// A sequence longer than the context, no memory.
    pub fn decode(
        &self,
        device: &Device,
        tokens: &[u32],
        caches: &mut [LayerCache],
        length: usize,
        pass: &Pass,
    ) -> Result<Tensor> {
        let end = length + tokens.len();
        self.check_positions(end)?;
        let batch = TokenBatch::continuing(tokens, length);
        let cx = self.context(device, &batch, *pass);
        let mut x = self.embed(&cx)?;
        for (block, cache) in self.blocks.iter().zip(caches) {
            x = block.decode(&cx, &x, cache, end)?;
        }
        let last = device.gather_rows(&x, &[tokens.len().saturating_sub(1) as u32])?;
        let (h, _) = self.final_norm.forward(&cx, last)?;
        device.logits(&h, &self.lm_head())
    }

    fn embed(&self, cx: &Forward) -> Result<Tensor> {
        let Forward { device, parameters, batch, .. } = cx;
        let mut x = device.embedding(&batch.tokens, parameters.tensor(self.embedding)?, self.embedding_scale)?;
        if let Some(id) = self.position_embedding {
            let learned = device.embedding(&batch.positions, parameters.tensor(id)?, 1.0)?;
            device.add_scaled(&mut x, &learned, 1.0)?;
        }
        Ok(x)
    }

    fn context<'a>(&'a self, device: &'a Device, batch: &'a TokenBatch, pass: Pass) -> Forward<'a> {
        Forward { device, parameters: &self.parameters, tables: &self.tables, batch, pass }
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
