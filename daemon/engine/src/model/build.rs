//! From a checkpoint to a [`Decoder`], tensor by tensor. Which tensor is which part
//! is in the family's data.

use finetuned_formats::families::{MlpInput, NormKind, Parts, Projection, QkNormOver};
use finetuned_formats::{
    Activation as StoredActivation, ModelConfig, RandomTensor, Rope, RopeScaling, StoredType, TensorSource,
};
use finetuned_plugin_api::optimizer::TensorKind;
use finetuned_shaders::{Activation, AttentionSpec, Device, RotaryTable, Weight, WeightKind};

use super::attention::Attention;
use super::block::Block;
use super::decoder::Decoder;
use super::linear::Linear;
use super::mlp::{Mlp, MlpKind};
use super::norm::Norm;
use super::parameters::{Parameter, ParameterId, Parameters};
use super::products::Products;
use super::streams;
use crate::error::EngineError;

/// How a model is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// Every parameter of the base is trained (full fine-tuning).
    pub trainable: bool,
    /// Linear layers of the blocks in NF4; the value says whether the block
    /// scales are quantised as well. Embeddings, norms and the head stay dense.
    pub nf4: Option<bool>,
    /// Longest sequence that will be run.
    pub context: usize,
}

/// Loads a decoder from a checkpoint, one tensor in memory at a time beside
/// what is kept.
///
/// # Errors
/// A missing tensor or one of another shape, by name; no memory.
pub fn load(
    device: &Device,
    config: &ModelConfig,
    source: &dyn TensorSource,
    options: &LoadOptions,
) -> Result<Decoder, EngineError> {
    let parts = &config.family.parts;
    let mut loader = Loader { device, source, options, parameters: Parameters::default(), linears: 0, config, parts };
    let c = config.hidden_size;
    let context = options.context.max(1);

    let embedding = loader.tensor(parts.embedding, &[config.vocab_size, c], TensorKind::Embedding)?;
    let position_embedding = parts
        .position_embedding
        .map(|name| loader.tensor(name, &[config.max_positions, c], TensorKind::Embedding))
        .transpose()?;
    let blocks = (0..config.layers).map(|i| block(&mut loader, i)).collect::<Result<Vec<_>, _>>()?;
    let final_norm = loader.norm(parts.final_norm, c)?;
    let head = if config.tied_embeddings {
        embedding
    } else {
        loader.tensor(parts.head, &[config.vocab_size, c], TensorKind::Head)?
    };
    let embedding_scale = if parts.scaled_embedding { (c as f32).sqrt() } else { 1.0 };
    let reach = if position_embedding.is_some() { config.max_positions } else { context };
    let tables = rotary_tables(device, config, reach)?;
    Ok(Decoder {
        config: config.clone(),
        parameters: loader.parameters,
        embedding,
        position_embedding,
        embedding_scale,
        blocks,
        final_norm,
        head,
        value_head: None,
        tables,
        context: reach,
    })
}

/// Whether a frozen matrix stays in the bf16 that the checkpoint has it in: the
/// same values in half the memory. A CPU multiplies f32 faster, and has more
/// memory.
pub(crate) fn stays_bf16(device: &Device, source: &dyn TensorSource, name: &str) -> bool {
    !device.info().on_host && source.info(name).is_some_and(|info| info.stored == StoredType::BF16)
}

struct Loader<'a> {
    device: &'a Device,
    source: &'a dyn TensorSource,
    options: &'a LoadOptions,
    parameters: Parameters,
    linears: u32,
    config: &'a ModelConfig,
    parts: &'a Parts,
}

impl Loader<'_> {
    /// The tensor must be there, in this shape.
    fn check(&self, name: &str, shape: &[usize]) -> Result<(), EngineError> {
        let info = self.source.info(name).ok_or_else(|| EngineError::Checkpoint {
            tensor: name.to_string(),
            reason: "is missing from the checkpoint".into(),
        })?;
        if info.shape != shape {
            return Err(EngineError::Checkpoint {
                tensor: name.to_string(),
                reason: format!("has shape {:?}, the configuration asks for {shape:?}", info.shape),
            });
        }
        Ok(())
    }

    /// The values of a tensor.
    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, EngineError> {
        self.check(name, shape)?;
        let values = self.source.read_f32(name)?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(EngineError::Checkpoint {
                tensor: name.to_string(),
                reason: format!(
                    "holds {} at element {at}; the file is damaged or was saved from a failed run",
                    values[at]
                ),
            });
        }
        Ok(values)
    }

    /// A tensor on the device. One that is made up is made there.
    fn value(&self, name: &str, shape: &[usize], kind: WeightKind) -> Result<Weight, EngineError> {
        if let Some(random) = self.source.random(name) {
            self.check(name, shape)?;
            return self.make(random, shape, kind);
        }
        self.upload(shape, &self.read(name, shape)?, kind)
    }

    fn make(&self, random: RandomTensor, shape: &[usize], kind: WeightKind) -> Result<Weight, EngineError> {
        let key = streams::made_up(&random);
        Ok(self.device.random_weight(shape, random.scale, key, kind)?)
    }

    fn upload(&self, shape: &[usize], values: &[f32], kind: WeightKind) -> Result<Weight, EngineError> {
        Ok(match kind {
            WeightKind::F32 => Weight::Dense(self.device.upload(shape, values)?),
            WeightKind::Bf16 => Weight::Dense(self.device.upload_bf16(shape, values)?),
            WeightKind::Nf4 { double_quant } => self.device.upload_nf4(shape, values, double_quant)?,
        })
    }

    /// The type of a weight that is not quantised.
    fn dense(&self, name: &str) -> WeightKind {
        let frozen = !self.options.trainable;
        if frozen && stays_bf16(self.device, self.source, name) { WeightKind::Bf16 } else { WeightKind::F32 }
    }

    fn tensor(&mut self, name: &str, shape: &[usize], kind: TensorKind) -> Result<ParameterId, EngineError> {
        let held =
            if matches!(kind, TensorKind::Embedding | TensorKind::Head) { self.dense(name) } else { WeightKind::F32 };
        let value = self.value(name, shape, held)?;
        Ok(self.parameters.push(Parameter {
            name: name.to_string(),
            kind,
            value,
            shape: shape.to_vec(),
            trainable: self.options.trainable,
            transposed_on_disk: false,
        }))
    }

    fn norm(&mut self, module: &str, width: usize) -> Result<Norm, EngineError> {
        let weight = self.tensor(&format!("{module}.weight"), &[width], TensorKind::Norm)?;
        let (bias, offset) = match self.parts.norm {
            NormKind::Rms { offset } => (None, offset),
            NormKind::Layer => (Some(self.tensor(&format!("{module}.bias"), &[width], TensorKind::Norm)?), 0.0),
        };
        Ok(Norm { weight, bias, epsilon: self.config.norm_epsilon, offset })
    }

    /// A norm of the stream within a layer, if the family has it.
    fn stream_norm(&mut self, at: &str, name: Option<&str>) -> Result<Option<Norm>, EngineError> {
        name.map(|name| self.norm(&format!("{at}.{name}"), self.config.hidden_size)).transpose()
    }

    fn linear(&mut self, module: String, inputs: usize, outputs: usize, bias: bool) -> Result<Linear, EngineError> {
        let name = format!("{module}.weight");
        let conv1d = self.parts.transposed;
        let kind = match self.options.nf4 {
            Some(double_quant) => WeightKind::Nf4 { double_quant },
            None => self.dense(&name),
        };
        let value = if let Some(random) = self.source.random(&name).filter(|_| conv1d) {
            self.check(&name, &[inputs, outputs])?;
            self.make(random, &[outputs, inputs], kind)?
        } else if conv1d {
            let values = transposed(&self.read(&name, &[inputs, outputs])?, inputs, outputs);
            self.upload(&[outputs, inputs], &values, kind)?
        } else {
            self.value(&name, &[outputs, inputs], kind)?
        };
        let weight = self.parameters.push(Parameter {
            name,
            kind: TensorKind::Matrix,
            value,
            shape: vec![outputs, inputs],
            trainable: self.options.trainable,
            transposed_on_disk: conv1d,
        });
        let bias =
            if bias { Some(self.tensor(&format!("{module}.bias"), &[outputs], TensorKind::Bias)?) } else { None };
        let place = self.linears;
        self.linears += 1;
        Ok(Linear { module, weight, bias, inputs, outputs, adapter: None, place })
    }
}

fn block(l: &mut Loader, i: usize) -> Result<Block, EngineError> {
    let config = l.config;
    let (c, d) = (config.hidden_size, config.head_dim);
    let (q, kv) = (config.heads * d, config.kv_heads * d);
    let f = config.intermediate_size;
    let sliding = config.layer_is_sliding.get(i).copied().unwrap_or(false);
    let attention = AttentionSpec {
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: d,
        scale: config.query_scale,
        softcap: config.attention_softcap,
        window: if sliding { config.sliding_window } else { None },
    };
    let activation = match config.activation {
        StoredActivation::Silu => Activation::Silu,
        StoredActivation::GeluTanh => Activation::GeluTanh,
        StoredActivation::Gelu => Activation::Gelu,
    };
    let parts = l.parts;
    // Sliding layers may turn by another table.
    let rotates = parts.position_embedding.is_none() && config.layer_uses_rope.get(i).copied().unwrap_or(true);
    let rotary = rotates.then(|| usize::from(sliding && config.local_rope_theta.is_some()));

    let at = format!("{}.{i}", parts.layers);
    let norm_attention = l.stream_norm(&at, parts.norm_attention)?;
    let bias = config.attention_bias;
    let projection = match parts.projection {
        Projection::Split { query, key, value } => Products::Split(vec![
            l.linear(format!("{at}.{query}"), c, q, bias)?,
            l.linear(format!("{at}.{key}"), c, kv, bias)?,
            l.linear(format!("{at}.{value}"), c, kv, bias)?,
        ]),
        Projection::Fused(name) => {
            let linear = Box::new(l.linear(format!("{at}.{name}"), c, q + 2 * kv, bias)?);
            Products::Fused { linear, widths: vec![q, kv, kv] }
        }
    };
    let (query_norm, key_norm) = match &parts.qk_norm {
        None => (None, None),
        Some(norms) => {
            let (query, key) = match norms.over {
                QkNormOver::Head => (d, d),
                QkNormOver::Token => (q, kv),
            };
            let query_norm = l.norm(&format!("{at}.{}", norms.query), query)?;
            (Some(query_norm), Some(l.norm(&format!("{at}.{}", norms.key), key)?))
        }
    };
    let output = l.linear(format!("{at}.{}", parts.attention_output), q, c, config.output_bias)?;
    let post_attention = l.stream_norm(&at, parts.post_attention)?;
    let norm_mlp = l.stream_norm(&at, parts.norm_mlp)?;
    let post_mlp = l.stream_norm(&at, parts.post_mlp)?;
    let bias = config.mlp_bias;
    let (kind, input) = match parts.mlp_input {
        MlpInput::Gated { gate, up } => {
            let gate = l.linear(format!("{at}.{gate}"), c, f, bias)?;
            (MlpKind::Gated, Products::Split(vec![gate, l.linear(format!("{at}.{up}"), c, f, bias)?]))
        }
        MlpInput::FusedGated(name) => {
            let linear = Box::new(l.linear(format!("{at}.{name}"), c, 2 * f, bias)?);
            (MlpKind::Gated, Products::Fused { linear, widths: vec![f, f] })
        }
        MlpInput::Plain(name) => (MlpKind::Plain, Products::Split(vec![l.linear(format!("{at}.{name}"), c, f, bias)?])),
    };
    let down = l.linear(format!("{at}.{}", parts.mlp_output), f, c, bias)?;
    Ok(Block {
        norm_attention,
        attention: Attention { projection, query_norm, key_norm, output, spec: attention, rotary },
        post_attention,
        norm_mlp,
        mlp: Mlp { input, kind, activation, output: down },
        post_mlp,
    })
}

/// The model's rotary tables: the main one, and that of sliding layers if they have
/// another base.
fn rotary_tables(device: &Device, config: &ModelConfig, positions: usize) -> Result<Vec<RotaryTable>, EngineError> {
    if config.family.parts.position_embedding.is_some() {
        return Ok(Vec::new());
    }
    let mut ropes = vec![config.rope.clone()];
    if let Some(theta) = config.local_rope_theta {
        ropes.push(Rope { theta, rotary_dim: config.rope.rotary_dim, scaling: RopeScaling::None });
    }
    let mut tables = Vec::with_capacity(ropes.len());
    for rope in ropes {
        let inverse: Vec<f32> = rope.frequencies().iter().map(|f| *f as f32).collect();
        tables.push(rotary_table(device, &inverse, rope.rotary_dim, positions)?);
    }
    Ok(tables)
}

/// Angles, sines and cosines in f32: half precision loses positions past a few
/// thousand (transformers#29285).
fn rotary_table(
    device: &Device,
    inverse: &[f32],
    rotary_dim: usize,
    positions: usize,
) -> Result<RotaryTable, EngineError> {
    let half = inverse.len();
    let mut cos = Vec::with_capacity(positions * half);
    let mut sin = Vec::with_capacity(positions * half);
    for position in 0..positions {
        for f in inverse {
            let (s, c) = (position as f32 * f).sin_cos();
            cos.push(c);
            sin.push(s);
        }
    }
    Ok(RotaryTable {
        cos: device.upload(&[positions, half], &cos)?,
        sin: device.upload(&[positions, half], &sin)?,
        rotary_dim,
    })
}

/// `[rows, columns]` to `[columns, rows]`.
pub fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for (r, row) in values.chunks_exact(columns).enumerate() {
        for (c, value) in row.iter().enumerate() {
            out[c * rows + r] = *value;
        }
    }
    out
}
