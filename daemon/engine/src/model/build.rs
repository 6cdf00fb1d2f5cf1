//! From a checkpoint to a [`Decoder`]: which tensor is which part, family by
//! family, and the loading, tensor by tensor.

use finetuned_formats::{
    Activation as StoredActivation, Architecture, ModelConfig, RandomTensor, Rope, RopeScaling, StoredType,
    TensorSource,
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
    let mut loader = Loader { device, source, options, parameters: Parameters::default(), linears: 0, config };
    let names = Names::of(config.architecture);
    let c = config.hidden_size;
    let context = options.context.max(1);

    let embedding = loader.tensor(names.embedding, &[config.vocab_size, c], TensorKind::Embedding)?;
    let position_embedding = match config.architecture {
        Architecture::Gpt2 => {
            let id = loader.tensor("transformer.wpe.weight", &[config.max_positions, c], TensorKind::Embedding)?;
            Some(id)
        }
        _ => None,
    };
    let blocks = (0..config.layers).map(|i| block(&mut loader, i)).collect::<Result<Vec<_>, _>>()?;
    let final_norm = loader.norm(names.final_norm, c)?;
    let head = if config.tied_embeddings {
        embedding
    } else {
        loader.tensor(HEAD, &[config.vocab_size, c], TensorKind::Head)?
    };
    let embedding_scale = match config.architecture {
        Architecture::Gemma2 | Architecture::Gemma3 => (c as f32).sqrt(),
        _ => 1.0,
    };
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

/// The embedding, of all families but GPT-2.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The language-model head where it is not the embedding.
pub(crate) const HEAD: &str = "lm_head.weight";

/// Names that differ between the Llama-like families and GPT-2.
struct Names {
    embedding: &'static str,
    final_norm: &'static str,
}

impl Names {
    fn of(architecture: Architecture) -> Names {
        match architecture {
            Architecture::Gpt2 => Names { embedding: "transformer.wte.weight", final_norm: "transformer.ln_f" },
            _ => Names { embedding: EMBEDDING, final_norm: "model.norm" },
        }
    }
}

struct Loader<'a> {
    device: &'a Device,
    source: &'a dyn TensorSource,
    options: &'a LoadOptions,
    parameters: Parameters,
    linears: u32,
    config: &'a ModelConfig,
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
        let bias = match self.config.architecture {
            Architecture::Gpt2 => Some(self.tensor(&format!("{module}.bias"), &[width], TensorKind::Norm)?),
            _ => None,
        };
        let offset = match self.config.architecture {
            Architecture::Gemma2 | Architecture::Gemma3 => 1.0,
            _ => 0.0,
        };
        Ok(Norm { weight, bias, epsilon: self.config.norm_epsilon, offset })
    }

    fn linear(&mut self, module: String, inputs: usize, outputs: usize, bias: bool) -> Result<Linear, EngineError> {
        let name = format!("{module}.weight");
        let conv1d = self.config.architecture == Architecture::Gpt2;
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
    let gemma = matches!(config.architecture, Architecture::Gemma2 | Architecture::Gemma3);
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
    // Gemma 3 turns its sliding layers by a table of their own.
    let rotary = match config.architecture {
        Architecture::Gpt2 => None,
        _ if !config.layer_uses_rope.get(i).copied().unwrap_or(true) => None,
        _ => Some(usize::from(sliding && config.local_rope_theta.is_some())),
    };

    if config.architecture == Architecture::Gpt2 {
        let at = format!("transformer.h.{i}");
        let norm_attention = Some(l.norm(&format!("{at}.ln_1"), c)?);
        let qkv = l.linear(format!("{at}.attn.c_attn"), c, 3 * c, true)?;
        let projection = Products::Fused { linear: Box::new(qkv), widths: vec![q, kv, kv] };
        let output = l.linear(format!("{at}.attn.c_proj"), c, c, true)?;
        let norm_mlp = Some(l.norm(&format!("{at}.ln_2"), c)?);
        let input = Products::Split(vec![l.linear(format!("{at}.mlp.c_fc"), c, f, true)?]);
        let down = l.linear(format!("{at}.mlp.c_proj"), f, c, true)?;
        return Ok(Block {
            norm_attention,
            attention: Attention { projection, query_norm: None, key_norm: None, output, spec: attention, rotary },
            post_attention: None,
            norm_mlp,
            mlp: Mlp { input, kind: MlpKind::Plain, activation, output: down },
            post_mlp: None,
        });
    }

    let at = format!("model.layers.{i}");
    let attn = format!("{at}.self_attn");
    let mlp = format!("{at}.mlp");
    let norm_attention = Some(l.norm(&format!("{at}.input_layernorm"), c)?);
    let projection = if config.architecture == Architecture::Phi3 {
        let qkv = l.linear(format!("{attn}.qkv_proj"), c, q + 2 * kv, false)?;
        Products::Fused { linear: Box::new(qkv), widths: vec![q, kv, kv] }
    } else {
        Products::Split(vec![
            l.linear(format!("{attn}.q_proj"), c, q, config.attention_bias)?,
            l.linear(format!("{attn}.k_proj"), c, kv, config.attention_bias)?,
            l.linear(format!("{attn}.v_proj"), c, kv, config.attention_bias)?,
        ])
    };
    let (query_norm, key_norm) = if config.qk_norm {
        (Some(l.norm(&format!("{attn}.q_norm"), d)?), Some(l.norm(&format!("{attn}.k_norm"), d)?))
    } else {
        (None, None)
    };
    let output = l.linear(format!("{attn}.o_proj"), q, c, config.output_bias)?;
    let (post_attention, norm_mlp, post_mlp) = if gemma {
        (
            Some(l.norm(&format!("{at}.post_attention_layernorm"), c)?),
            Some(l.norm(&format!("{at}.pre_feedforward_layernorm"), c)?),
            Some(l.norm(&format!("{at}.post_feedforward_layernorm"), c)?),
        )
    } else {
        (None, Some(l.norm(&format!("{at}.post_attention_layernorm"), c)?), None)
    };
    let input = if config.architecture == Architecture::Phi3 {
        let gate_up = l.linear(format!("{mlp}.gate_up_proj"), c, 2 * f, false)?;
        Products::Fused { linear: Box::new(gate_up), widths: vec![f, f] }
    } else {
        Products::Split(vec![
            l.linear(format!("{mlp}.gate_proj"), c, f, config.mlp_bias)?,
            l.linear(format!("{mlp}.up_proj"), c, f, config.mlp_bias)?,
        ])
    };
    let down = l.linear(format!("{mlp}.down_proj"), f, c, config.mlp_bias)?;
    Ok(Block {
        norm_attention,
        attention: Attention { projection, query_norm, key_norm, output, spec: attention, rotary },
        post_attention,
        norm_mlp,
        mlp: Mlp { input, kind: MlpKind::Gated, activation, output: down },
        post_mlp,
    })
}

/// The model's rotary tables: the main one, and Gemma 3's local one.
fn rotary_tables(device: &Device, config: &ModelConfig, positions: usize) -> Result<Vec<RotaryTable>, EngineError> {
    if config.architecture == Architecture::Gpt2 {
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
