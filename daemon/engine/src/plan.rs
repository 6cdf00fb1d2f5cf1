//! What a run will take: bytes by part and time, before it starts.
//!
//! Bytes are counted from the same shapes that the step allocates, so the plan
//! is arithmetic, not a guess; time is those products over a rate measured for
//! a moment on the device.

use std::time::Instant;

use finetuned_data::{Examples, Prepared, Row};
use finetuned_formats::{Architecture, ModelConfig, ModelFiles, PeftAdapter, TensorSource, read_peft};
use finetuned_plugin_api::optimizer::{Optimizer, TensorKind, TensorShape};
use finetuned_plugin_api::registry::Registry;
use finetuned_shaders::{Device, DeviceInfo};
use serde::{Deserialize, Serialize};

use crate::api::TrainRequest;
use crate::error::EngineError;
use crate::model::build::{EMBEDDING, HEAD, stays_bf16};
use crate::model::shape::{LinearShape, ModelShape};
use crate::recipe::{Method, Recipe};
use crate::train::heads::Heads;
use crate::train::optimize::{OptimizerBytes, Rules};
use crate::train::prepare;
use crate::train::step::only_logp;
use crate::train::units::{Document, Order, documents};

/// Bytes of one kind of thing at the step's peak.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanPart {
    /// `weights`, `adapter`, `gradients`, `moments`, `activations`, `LM head`, ….
    pub name: String,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub device: String,
    pub parts: Vec<PlanPart>,
    pub peak_bytes: u64,
    /// What the device has to give; 0 where it does not say.
    pub available_bytes: u64,
    /// Host memory that `train.offload_activations` takes beside the peak, which is
    /// the device's.
    #[serde(default)]
    pub offloaded_bytes: u64,
    pub fits: bool,
    /// Sequences per forward pass that the run will use.
    pub micro_batch_size: usize,
    /// The most sequences of the longest rows that fit.
    pub largest_micro_batch: usize,
    pub steps: usize,
    pub tokens_per_step: f64,
    pub trainable_parameters: u64,
    pub parameters: u64,
    /// Estimated from a short measurement of the device's matrix products.
    pub seconds_per_step: f64,
    pub total_seconds: f64,
    /// What would make it fit, where it does not.
    pub remedy: Option<String>,
}

/// What a process of this program holds beside the model: code, tokenizer,
/// allocator slack. Measured on a run of SmolLM2-135M.
const PROCESS_BYTES: u64 = 60 << 20;

/// A micro-batch chosen by itself takes about this many tokens: more makes the
/// matrix products no faster on a CPU and costs memory.
const COMFORTABLE_TOKENS: usize = 1024;

/// Share of a device's matrix-product rate that a whole step reaches; measured,
/// see BENCHMARKS.md.
const STEP_EFFICIENCY: f64 = 0.8;

/// Lists of indices that a device may keep, each as long as the micro-batch.
const INDICES: u64 = 16;

/// Plans a request without training.
///
/// # Errors
/// What training would refuse before its first step.
pub fn plan(request: &TrainRequest) -> Result<Plan, EngineError> {
    let opened = prepare::open_model(&request.model)?;
    let prepared = prepare::read_data(request, &opened)?;
    let ops = prepare::device(&request.device, request.threads)?;
    let registry = prepare::registry(&request.plugins)?;
    let order = Order::of(&prepared.train, &request.recipe.train);
    let steps = request.recipe.train.steps.unwrap_or_else(|| order.steps_of_epochs(request.recipe.train.epochs));
    of_run(request, &registry, &opened.files, &prepared, steps, ops.as_ref()).map(|planned| planned.plan)
}

/// A plan, and what a step of the run makes.
pub(crate) struct Planned {
    pub plan: Plan,
    pub step_bytes: StepBytes,
}

/// Bytes of what a step makes, by the sequences of a forward pass: each number
/// that the halving of the micro-batch can come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepBytes(Vec<(usize, u64)>);

impl StepBytes {
    /// For micro-batches of `largest` sequences, half of that, and so on to one.
    pub fn new(largest: usize, mut bytes: impl FnMut(usize) -> u64) -> StepBytes {
        let mut list = Vec::new();
        let mut micro = largest.max(1);
        loop {
            list.push((micro, bytes(micro)));
            if micro == 1 {
                return StepBytes(list);
            }
            micro = micro.div_ceil(2);
        }
    }

    /// None where nobody counted. Between two known numbers the larger counts; a
    /// resumed run may have begun with more than this plan's, in proportion.
    pub fn at(&self, micro: usize) -> Option<u64> {
        let (largest, most) = *self.0.first()?;
        let known = self.0.iter().rev().find(|(known, _)| *known >= micro);
        Some(known.map_or(most / largest as u64 * micro as u64, |(_, bytes)| *bytes))
    }
}

pub(crate) fn of_run(
    request: &TrainRequest,
    registry: &Registry,
    files: &ModelFiles,
    prepared: &Prepared,
    steps: usize,
    ops: &Device,
) -> Result<Planned, EngineError> {
    let recipe = &request.recipe;
    let start = request.adapter.as_deref().map(read_peft).transpose()?;
    let objective = registry.objective(&recipe.loss.name, &recipe.loss.parameters)?;
    let optimizer = prepare::optimizer(recipe, registry)?;
    let kl = objective.alignment_needs().is_some_and(|a| a.kl_completions);
    let mut order = Order::of(&prepared.train, &recipe.train);
    let info = ops.info();
    let available = available(&info, host_memory());

    let heads = Heads::of(&objective);
    let footprint =
        Footprint::new(ops, &files.config, files.tensors.as_ref(), recipe, start.as_ref(), heads, optimizer.as_ref())?;
    let mut others = Vec::new();
    let frozen = recipe.method == Method::Full || start.is_some();
    if frozen && objective.loss().needs().reference_logp {
        others.push(part("reference", 4 * footprint.trainable));
    }
    // What lies in the host's memory counts where the device's is the same.
    if info.shares_host_memory {
        others.push(part("process", PROCESS_BYTES));
        others.push(part("dataset", 5 * (prepared.report.tokens + prepared.report.validation_tokens) as u64));
    }
    let other: u64 = others.iter().map(|part| part.bytes).sum();
    let batch = recipe.train.batch_size;
    let peak_at = |order: &mut Order, micro: usize| {
        let (tokens, trained) = largest_micro_batch(order, &prepared.train, micro, steps, kl, heads);
        (footprint.fixed() + footprint.step(ops, tokens, trained) + other, tokens, trained)
    };
    let fits = |bytes: u64| available == 0 || bytes <= available;

    // The largest micro-batch that fits, by bisection over 1..=batch.
    let (mut low, mut high) = (0, batch);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(peak_at(&mut order, middle).0) { low = middle } else { high = middle - 1 }
    }
    let largest = low;
    let micro = match recipe.train.micro_batch_size {
        0 => {
            let lengths = prepared.train.lengths();
            let mean = lengths.iter().sum::<usize>() / lengths.len().max(1);
            let rows_packed = recipe.train.packing && matches!(prepared.train, Examples::Supervised(_));
            let unit = if rows_packed { recipe.train.sequence_length } else { mean.max(1) };
            (COMFORTABLE_TOKENS / unit).clamp(1, batch).min(largest.max(1))
        }
        asked => asked,
    };
    let (peak, tokens, trained) = peak_at(&mut order, micro);
    let mut parts = footprint.fixed_parts();
    parts.extend(footprint.step_parts(ops, tokens, trained));
    parts.extend(others);
    let step_bytes = StepBytes::new(micro, |micro| {
        let (tokens, trained) = largest_micro_batch(&mut order, &prepared.train, micro, steps, kl, heads);
        footprint.reserved(ops, tokens, trained)
    });

    let tokens_per_step = {
        let rows = order.rows_per_epoch().max(1);
        prepared.train.lengths().iter().sum::<usize>() as f64 / rows as f64 * batch.min(rows) as f64
    };
    let rate = matrix_rate(ops)?;
    let longest = prepare::longest_document(prepared);
    let mean_context = mean_document(&prepared.train);
    let loss = objective.loss();
    let fused =
        loss.separable(&Default::default()).is_some() || (recipe.method != Method::Full && only_logp(&loss.needs()));
    let work = footprint.work_per_token(mean_context, fused);
    let seconds_per_step = work * tokens_per_step / (rate * STEP_EFFICIENCY);
    let remedy = (!fits(peak)).then(|| remedy(recipe, longest, info.on_host));
    let plan = Plan {
        device: info.name,
        parts,
        peak_bytes: peak,
        available_bytes: available,
        offloaded_bytes: footprint.offloaded(tokens),
        fits: fits(peak),
        micro_batch_size: micro,
        largest_micro_batch: largest,
        steps,
        tokens_per_step,
        trainable_parameters: footprint.trainable,
        parameters: footprint.parameters,
        seconds_per_step,
        total_seconds: seconds_per_step * steps as f64,
        remedy,
    };
    Ok(Planned { plan, step_bytes })
}

/// What the device has to give; 0 where it does not say. One that shares the
/// host's memory can give what the host has left.
fn available(info: &DeviceInfo, host: u64) -> u64 {
    match (info.memory_bytes, info.shares_host_memory) {
        (own, false) => own,
        (0, true) => host,
        (own, true) if host == 0 => own,
        (own, true) => own.min(host),
    }
}

/// Memory that the host can give now, 0 where it does not say: what Linux calls
/// available, within the control group's limit.
pub(crate) fn host_memory() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let available = available_bytes(&read("/proc/meminfo"));
    let limit: u64 = read("/sys/fs/cgroup/memory.max").trim().parse().unwrap_or(u64::MAX);
    let used: u64 = read("/sys/fs/cgroup/memory.current").trim().parse().unwrap_or(0);
    available.min(limit.saturating_sub(used))
}

/// `MemAvailable` of /proc/meminfo, which counts in KiB.
fn available_bytes(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

fn part(name: &str, bytes: u64) -> PlanPart {
    PlanPart { name: name.into(), bytes }
}

/// The first thing to change that would help most.
fn remedy(recipe: &Recipe, longest: usize, on_host: bool) -> String {
    let mut ideas = Vec::new();
    if recipe.train.micro_batch_size != 1 && recipe.train.batch_size > 1 {
        ideas.push("train.micro_batch_size = 1".to_string());
    }
    if !recipe.train.gradient_checkpointing {
        ideas.push("train.gradient_checkpointing = true".into());
    } else if !recipe.train.offload_activations && !on_host {
        ideas.push("train.offload_activations = true".into());
    }
    if longest > 512 {
        ideas.push(format!("a train.sequence_length below {longest}"));
    }
    match recipe.method {
        Method::Full => ideas.push("method = \"lora\"".into()),
        Method::Lora => ideas.push("method = \"qlora\"".into()),
        Method::Qlora => ideas.push("a smaller base model".into()),
    }
    format!("try {}", ideas.join(", or "))
}

/// The most tokens, and rows of the heads, that a micro-batch of the run holds.
fn largest_micro_batch(
    order: &mut Order,
    examples: &Examples,
    micro: usize,
    steps: usize,
    kl: bool,
    heads: Heads,
) -> (usize, usize) {
    let read = |d: &Document| if heads.language { d.targets() } else { 0 } + usize::from(heads.value);
    let mut most = (0, 0);
    // Every epoch shuffles anew; a few show what the rest can bring.
    let looked_at = steps.min(4 * order.steps_of_epochs(1.0).max(1));
    for step in 1..=looked_at {
        let rows = order.step(step).0.to_vec();
        let batch: Vec<&Row> = rows.iter().collect();
        let sizes: Vec<(usize, usize)> = (0..batch.len())
            .map(|at| {
                documents(examples, &batch, at, kl)
                    .iter()
                    .map(|d| (d.len(), read(d)))
                    .fold((0, 0), |sum, next| (sum.0 + next.0, sum.1 + next.1))
            })
            .collect();
        for chunk in sizes.chunks(micro.max(1)) {
            let sum = chunk.iter().fold((0, 0), |sum, next| (sum.0 + next.0, sum.1 + next.1));
            most = (most.0.max(sum.0), most.1.max(sum.1));
        }
    }
    most
}

fn mean_document(examples: &Examples) -> f64 {
    let lengths: Vec<usize> = match examples {
        Examples::Supervised(list) => list.iter().map(|e| e.tokens.len()).collect(),
        Examples::Pairs(list) => {
            list.iter().flat_map(|e| [e.prompt.len() + e.chosen.len(), e.prompt.len() + e.rejected.len()]).collect()
        }
        Examples::Labelled(list) => list.iter().map(|e| e.prompt.len() + e.completion.len()).collect(),
    };
    let total: usize = lengths.iter().sum();
    // Weighted by tokens: a long document's tokens see a long context.
    lengths.iter().map(|l| (l * l) as f64).sum::<f64>() / total.max(1) as f64
}

/// Floating-point operations a second of a matrix product on this device.
///
/// # Errors
/// No memory for the operands.
pub fn matrix_rate(ops: &Device) -> Result<f64, EngineError> {
    let (m, k, n) = (512, 1024, 1024);
    let a = ops.zeros(&[m, k])?;
    let b = ops.zeros(&[n, k])?;
    let mut best = f64::INFINITY;
    for number in 0..4 {
        let started = Instant::now();
        let c = ops.matmul(&a, false, &b, true, 1.0, None)?;
        // A device that computes behind our back must be waited for.
        ops.sum_squares(&[&c])?;
        best = best.min(started.elapsed().as_secs_f64());
        // The first product also compiles its kernel; the second of a slow
        // device tells enough.
        if number > 0 && best > 0.2 {
            break;
        }
    }
    Ok(2.0 * (m * k * n) as f64 / best)
}

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
    optimizer: OptimizerBytes,
    trainable: u64,
    parameters: u64,
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
        let tables = [Some(EMBEDDING), (!config.tied_embeddings).then_some(HEAD)];
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
            narrow_head: element(if config.tied_embeddings { EMBEDDING } else { HEAD }) == 2,
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

    fn fixed_parts(&self) -> Vec<PlanPart> {
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

    fn fixed(&self) -> u64 {
        self.fixed_parts().iter().map(|p| p.bytes).sum()
    }

    /// What a step holds at its peak beside what lasts: what the forward pass
    /// keeps, and the larger one of what the head and the backward pass add, which
    /// are not there at the same time.
    fn step_parts(&self, ops: &Device, tokens: usize, trained: usize) -> Vec<PlanPart> {
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
        let fused = matches!(s.architecture, Architecture::Phi3 | Architecture::Gpt2);
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
    fn offloaded(&self, tokens: usize) -> u64 {
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

    fn step(&self, ops: &Device, tokens: usize, trained: usize) -> u64 {
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
        None => {
            crate::model::adapter::ranks_of_recipe(&modules, &recipe.lora, shape.architecture == Architecture::Gpt2)
        }
    }
}

#[cfg(test)]
mod tests;
