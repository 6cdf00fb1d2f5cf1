//! Bytes and operations of a model under a recipe.

use finetuned_formats::{ModelConfig, PeftAdapter, TensorSource};
use finetuned_plugin_api::optimizer::{Optimizer, TensorKind, TensorShape};
use finetuned_shaders::Device;

use crate::error::EngineError;
use crate::model::build::stays_bf16;
use crate::model::shape::{LinearShape, ModelShape};
use crate::recipe::{Method, Recipe};
use crate::train::heads::Heads;
use crate::train::optimize::{OptimizerBytes, Rules};
use crate::vocabulary::{PlanPart, part};

/// Lists of indices that a device may keep, each as long as the micro-batch.
const INDICES: u64 = 16;

/// Bytes and operations of a model under a recipe.
pub(crate) struct Footprint {
    shape: ModelShape,
    /// Rank of each linear layer's adapter, 0 where it has none.
    ranks: Vec<usize>,
    dora: bool,
    full: bool,
    /// Linear weights are kept in four bits, or in bf16.
    packed: bool,
    /// So is the LM head, in bf16.
    narrow_head: bool,
    /// Dropout acts before the adapters.
    dropout: bool,
    checkpointing: bool,
    /// What checkpointing keeps waits on the host.
    offload: bool,
    heads: Heads,
    weights: u64,
    adapter: u64,
    pub(super) optimizer: OptimizerBytes,
    pub(super) trainable: u64,
    pub(super) parameters: u64,
}

impl Footprint {
    pub(crate) fn new(
        ops: &Device,
        config: &ModelConfig,
        source: &dyn TensorSource,
        recipe: &Recipe,
        start: Option<&PeftAdapter>,
        heads: Heads,
        optimizer: &dyn Optimizer,
    ) -> Result<Footprint, EngineError> {
        let shape = ModelShape::of(config);
        let parts = &config.architecture.family().parts;
        let full = recipe.method == Method::Full;
        let ranks = if full { vec![0; shape.linears.len()] } else { adapter_ranks(&shape, recipe, start)? };
        let dora = match start {
            Some(peft) => peft.config.dora,
            None => !full && recipe.lora.variant == crate::recipe::Variant::Dora,
        };
        let linear: u64 = shape.linears.iter().map(|l| (l.inputs * l.outputs) as u64).sum();
        // Bytes of one element of a frozen matrix.
        let element = |name: &str| if !full && stays_bf16(ops, source, name) { 2 } else { 4 };
        let linear_bytes = match recipe.method {
            // 4 bits an element, and per block of 64 a scale: 8 bits and 4 bytes per 256
            // of them, or 4 bytes.
            Method::Qlora if recipe.qlora.double_quant => linear / 2 + linear / 64 + linear / 64 / 64,
            Method::Qlora => linear / 2 + linear / 16,
            _ => {
                let bytes = |l: &LinearShape| element(&format!("{}.weight", l.module)) * (l.inputs * l.outputs) as u64;
                shape.linears.iter().map(bytes).sum()
            }
        };
        let (embedding, head) = (parts.embedding, if config.tied_embeddings { parts.embedding } else { parts.head });
        let tables = [Some(embedding), (!config.tied_embeddings).then_some(head)];
        let narrow = tables.into_iter().flatten().filter(|name| element(name) == 2).count() as u64;
        let other_bytes = 4 * shape.other_parameters - narrow * 2 * (shape.vocab * shape.hidden) as u64;
        let weights = linear_bytes + other_bytes;
        let mut trained: Vec<TensorShape> = Vec::new();
        let tensor = |name: &str, shape: &[usize], kind| TensorShape { shape: shape.to_vec(), name: name.into(), kind };
        for (linear, rank) in shape.linears.iter().zip(&ranks).filter(|(_, rank)| **rank > 0) {
            trained.push(tensor(&linear.module, &[*rank, linear.inputs], TensorKind::LoraA));
            trained.push(tensor(&linear.module, &[linear.outputs, *rank], TensorKind::LoraB));
            if dora {
                trained.push(tensor(&linear.module, &[linear.outputs], TensorKind::Magnitude));
            }
        }
        // Counted with the adapters, beside which it is saved; with a full model
        // that part is the head alone.
        if heads.value {
            trained.push(tensor("score", &[1, shape.hidden], TensorKind::ValueHead));
        }
        let adapter_numbers: u64 = trained.iter().map(|t| t.elements() as u64).sum();
        let parameters = linear + shape.other_parameters + adapter_numbers;
        if full {
            for linear in &shape.linears {
                trained.push(tensor(&linear.module, &[linear.outputs, linear.inputs], TensorKind::Matrix));
            }
            // An untied language-model head that no loss reads stays as it is.
            let idle = if heads.language || config.tied_embeddings { 0 } else { shape.vocab * shape.hidden };
            trained.push(tensor("other", &[1, shape.other_parameters as usize - idle], TensorKind::Embedding));
        }
        let optimizer = Rules::bytes(ops, optimizer, &trained)?;
        let trainable = trained.iter().map(|t| t.elements() as u64).sum();
        Ok(Footprint {
            shape,
            ranks,
            dora,
            full,
            packed: recipe.method == Method::Qlora || narrow > 0,
            narrow_head: element(head) == 2,
            dropout: !full && recipe.lora.dropout > 0.0,
            checkpointing: recipe.train.gradient_checkpointing,
            offload: recipe.train.offload_activations && !ops.info().on_host,
            heads,
            weights,
            adapter: 4 * adapter_numbers,
            optimizer,
            trainable,
            parameters,
        })
    }

    pub(super) fn fixed_parts(&self) -> Vec<PlanPart> {
        let mut parts = vec![part("weights", self.weights)];
        if self.adapter > 0 {
            parts.push(part(if self.full { "value head" } else { "adapter" }, self.adapter));
        }
        parts.push(part("gradients", 4 * self.trainable));
        parts.push(part("moments", self.optimizer.states));
        if self.optimizer.scratch > 0 {
            parts.push(part("optimizer step", self.optimizer.scratch));
        }
        parts
    }

    pub(super) fn fixed(&self) -> u64 {
        self.fixed_parts().iter().map(|p| p.bytes).sum()
    }

    /// What a step holds at its peak beside what lasts: what the forward pass
    /// keeps, and the larger one of what the head and the backward pass add, which
    /// are not there at the same time.
    pub(super) fn step_parts(&self, ops: &Device, tokens: usize, trained: usize) -> Vec<PlanPart> {
        let (n, m) = (tokens as u64, trained as u64);
        let s = &self.shape;
        let layers = s.layers as u64;
        let (c, f) = (s.hidden as u64, s.intermediate as u64);
        let per_layer = self.layer_floats();
        // The stream after the last layer stays until the head is done; tokens,
        // positions, rows and targets are a few numbers each.
        let layers_kept = match (self.checkpointing, self.offload) {
            (false, _) => layers * per_layer,
            (true, false) => layers * c,
            // The one that leaves while the next layer runs.
            (true, true) => c,
        };
        let kept = n * (c + INDICES + layers_kept);
        // The head's input before and after its norm and that one's gradient, and
        // what the device makes of them.
        let unpacked = if self.narrow_head { ops.unpacked_bytes(s.vocab, s.hidden) / 4 } else { 0 };
        let logits = m + unpacked + ops.head_bytes(trained, s.vocab, s.hidden) / 4;
        let (name, head) = match (self.heads.language, self.heads.value) {
            (true, false) => ("LM head", 3 * m * c + logits),
            // Each of the two reads, and gives back, a copy of its rows.
            (true, true) => ("heads", 5 * m * c + logits),
            (false, _) => ("value head's rows", 3 * m * c),
        };
        // A layer's backward pass: its forward pass again, where only its input was
        // kept; the stream's gradient before and after, the MLP's (three of the inner
        // width, four where gate and up are one product) or attention's, and what an
        // adapter's dropout and scale make.
        let fused = s.fused;
        let widest = |width: fn(&LinearShape) -> usize| s.linears.iter().map(width).max().unwrap_or(0) as u64;
        let dropped = if self.dropout { widest(|linear| linear.inputs) } else { 0 };
        let adapter = dropped + if self.dora { 2 * (widest(|linear| linear.outputs) + c) } else { 0 };
        let mlp = f * if fused { 4 } else { 3 } + adapter;
        let (query, key_value) = (s.query as u64, s.key_value as u64);
        let attention = 2 * query + key_value * if fused { 4 } else { 2 };
        let ranks = 2 * self.ranks.iter().max().copied().unwrap_or(0) as u64;
        let again = if self.checkpointing { n * (per_layer + c) } else { 0 };
        let backward = again + n * (mlp.max(attention) + 3 * c + ranks);
        let (name, most) = if head >= backward { (name, head) } else { ("backward pass", backward) };
        let mut parts = vec![part("activations", 4 * kept), part(name, 4 * most)];
        let product = self.product_bytes(ops, n);
        if product > 0 {
            parts.push(part("products", product));
        }
        parts
    }

    /// Bytes of the layers' inputs that wait in host memory.
    pub(super) fn offloaded(&self, tokens: usize) -> u64 {
        if self.offload { 4 * (tokens * self.shape.layers * self.shape.hidden) as u64 } else { 0 }
    }

    /// What exists for the length of one product: a packed weight's values, or those of
    /// which DoRA takes the norm; a result before it is added.
    fn product_bytes(&self, ops: &Device, tokens: u64) -> u64 {
        let linears = self.shape.linears.iter();
        let unpacked = match self.packed || self.dora {
            true => linears.clone().map(|l| ops.unpacked_bytes(l.outputs, l.inputs)).max().unwrap_or(0),
            false => 0,
        };
        if !ops.adds_apart() {
            return unpacked;
        }
        let activation = tokens * linears.clone().map(|l| l.inputs.max(l.outputs)).max().unwrap_or(0) as u64;
        let gradient = match self.full {
            true => linears.map(|l| l.inputs * l.outputs).max().unwrap_or(0).max(self.shape.vocab * self.shape.hidden),
            false => 0,
        };
        // A result before it is added, and both operands rounded to 16 bits.
        unpacked + 4 * activation.max(gradient as u64) + 4 * activation
    }

    pub(super) fn step(&self, ops: &Device, tokens: usize, trained: usize) -> u64 {
        self.step_parts(ops, tokens, trained).iter().map(|p| p.bytes).sum()
    }

    /// What to reserve for steps: they make this much at their peak, or the
    /// optimizer does when the activations are gone.
    pub(crate) fn reserved(&self, ops: &Device, tokens: usize, trained: usize) -> u64 {
        self.step(ops, tokens, trained).max(self.optimizer.scratch)
    }

    /// Numbers a token that one layer keeps for its backward pass.
    fn layer_floats(&self) -> u64 {
        let s = &self.shape;
        let mut floats = 4 * s.hidden + 2 * s.query + 2 * s.key_value + s.heads + 2;
        floats += if s.gated { 3 * s.intermediate } else { 2 * s.intermediate };
        if s.qk_norm {
            floats += s.query + s.key_value;
        }
        if s.post_norms {
            floats += 2 * s.hidden;
        }
        let per_layer = s.linears.len() / s.layers.max(1);
        let adapters: usize = s
            .linears
            .iter()
            .zip(&self.ranks)
            .take(per_layer)
            .map(|(l, rank)| if *rank == 0 { 0 } else { rank + if self.dora { l.outputs } else { 0 } })
            .sum();
        (floats + adapters) as u64
    }

    /// Floating-point operations of a training token in documents of this mean
    /// length.
    pub(crate) fn work_per_token(&self, context: f64, fused_head: bool) -> f64 {
        let s = &self.shape;
        let linear: f64 = s.linears.iter().map(|l| (l.inputs * l.outputs) as f64).sum();
        let low: f64 = s.linears.iter().zip(&self.ranks).map(|(l, rank)| (rank * (l.inputs + l.outputs)) as f64).sum();
        let head = (s.hidden * s.vocab) as f64;
        // Half of the square, twice (scores, mixture); the backward pass does 2.5 times as much.
        let attention = 2.0 * context * s.query as f64 * s.layers as f64;
        let forward = 2.0 * linear + 2.0 * low + attention;
        // The value head's one row is nothing beside the vocabulary.
        let head = if self.heads.language { head } else { 0.0 };
        let weight_gradients = if self.full { 2.0 * (linear + head) } else { 0.0 };
        let backward = 2.0 * linear + 4.0 * low + 2.5 * attention + weight_gradients;
        let again = if self.checkpointing { forward } else { 0.0 };
        let head_passes = if fused_head { 4.0 } else { 6.0 };
        forward + backward + again + head_passes * head
    }
}

fn adapter_ranks(shape: &ModelShape, recipe: &Recipe, start: Option<&PeftAdapter>) -> Result<Vec<usize>, EngineError> {
    let modules: Vec<&str> = shape.linears.iter().map(|l: &LinearShape| l.module.as_str()).collect();
    match start {
        Some(peft) => Ok(crate::model::adapter::ranks(&modules, &peft.config)),
        None => crate::model::adapter::ranks_of_recipe(&modules, &recipe.lora, shape.transposed),
    }
}
