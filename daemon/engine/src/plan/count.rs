//! What a run takes, counted: its real model goes through a real micro-batch on a device
//! that has shapes and no values.

use std::sync::Arc;

use finetuned_formats::{FormatError, ModelConfig, PeftAdapter, RandomTensor, TensorInfo, TensorSource};
use finetuned_plugin_api::loss::{Gradients as LossGradients, Needs, PerStatistic, Statistic, TokenRule};
use finetuned_plugin_api::optimizer::Optimizer;
use finetuned_plugin_api::registry::Objective;
use finetuned_shaders::Counting;
use finetuned_shaders::{Device, TokenStatistics};

use crate::error::EngineError;
use crate::model::context::Pass;
use crate::model::decoder::{Decoder, Keep};
use crate::model::parameters::Gradients;
use crate::recipe::{Method, Recipe};
use crate::train::heads::Heads;
use crate::train::load::load_for_training;
use crate::train::micro_batch::MicroBatch;
use crate::train::optimize::{OptimizerBytes, Rules};
use crate::train::reference::Reference;
use crate::train::step::{Differentiation, keep};
use crate::vocabulary::{PlanPart, part};

/// A checkpoint's names and shapes. Its values are never read: every tensor is made up
/// by the device, which has no values.
struct Shapes<'a>(&'a dyn TensorSource);

impl TensorSource for Shapes<'_> {
    fn names(&self) -> Vec<String> {
        self.0.names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.0.info(name)
    }

    fn read_f32_into(&self, _: &str, out: &mut [f32]) -> Result<(), FormatError> {
        out.fill(0.0);
        Ok(())
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        let elements = self.0.info(name).map_or(0, |info| info.shape.iter().product());
        Ok(vec![0.0; elements])
    }

    fn random(&self, _: &str) -> Option<RandomTensor> {
        Some(RandomTensor { seed: 0, place: 0, scale: 0.0 })
    }
}

/// What a counting run is made from.
pub(crate) struct Counter<'a> {
    /// The device that the run will use.
    pub device: &'a Device,
    pub config: &'a ModelConfig,
    pub source: &'a dyn TensorSource,
    pub recipe: &'a Recipe,
    /// The adapter that the run starts from.
    pub start: Option<&'a PeftAdapter>,
    pub objective: &'a Objective,
    pub optimizer: Box<dyn Optimizer>,
    /// The longest document, in tokens.
    pub context: usize,
}

/// A run's model without values, and the bytes of what lasts.
pub(crate) struct Count {
    ops: Device,
    counting: Arc<Counting>,
    model: Decoder,
    gradients: Gradients,
    heads: Heads,
    needs: Needs,
    rule: Option<TokenRule>,
    keep: Keep,
    seed: u64,
    /// The bytes of what lasts, by part.
    pub parts: Vec<PlanPart>,
    pub optimizer: OptimizerBytes,
    /// Numbers in all, and numbers trained.
    pub parameters: (u64, u64),
}

/// What one micro-batch takes.
pub(crate) struct MicroBatchCount {
    /// Bytes that the forward pass keeps for the backward pass.
    kept: u64,
    /// The peak beyond these, and what has it.
    most: (&'static str, u64),
    /// Bytes of the layers' inputs that wait in host memory.
    pub offloaded: u64,
    /// Floating-point operations of matrix products and attention.
    pub flops: f64,
    pub tokens: usize,
}

impl MicroBatchCount {
    /// The peak of the micro-batch, beyond what lasts.
    pub fn bytes(&self) -> u64 {
        self.kept + self.most.1
    }

    pub fn parts(&self) -> Vec<PlanPart> {
        vec![part("activations", self.kept), part(self.most.0, self.most.1)]
    }
}

impl Counter<'_> {
    /// Makes the run's model, gradients and optimizer without their values.
    ///
    /// # Errors
    /// What the run itself would refuse: a tensor that is missing or has another shape,
    /// an adapter that does not fit, an optimizer without a rule for a shape.
    pub fn count(self) -> Result<Count, EngineError> {
        let counting = Arc::new(Counting::new(self.device.clone()));
        let ops = Device::from(counting.clone());
        let device = &ops;
        let heads = Heads::of(self.objective);
        let needs = self.objective.loss().needs();
        let live = || device.allocated_bytes().0;
        let (model, fresh) =
            load_for_training(device, self.config, &Shapes(self.source), self.recipe, self.start, heads, self.context)?;
        let all = live();
        let full = self.recipe.method == Method::Full;
        // With a full model, what is trained beside the weights is the value head alone.
        let value_head = model.value_head.map(|head| head.weight);
        let beside = model.parameters.iter().filter(|(id, p)| if full { Some(*id) == value_head } else { p.trainable });
        let beside = beside.map(|(_, p)| 4 * p.shape.iter().product::<usize>() as u64).sum::<u64>();
        let mut parts = vec![part("weights", all - beside)];
        if beside > 0 {
            parts.push(part(if full { "value head" } else { "adapter" }, beside));
        }
        let gradients = Gradients::zeros(device, &model.parameters)?;
        parts.push(part("gradients", live() - all));
        let optimizer = Rules::bytes(device, &model, self.optimizer)?;
        parts.push(part("optimizer state", optimizer.states));
        if optimizer.scratch > 0 {
            parts.push(part("optimizer step", optimizer.scratch));
        }
        let before = live();
        let reference = needs.reference_logp.then(|| Reference::freeze(device, &model, fresh)).transpose()?;
        if live() > before {
            parts.push(part("reference", live() - before));
        }
        drop(reference);
        let offload = self.recipe.train.offload_activations && !device.info().on_host;
        Ok(Count {
            heads,
            rule: self.objective.loss().separable(&Default::default()),
            keep: keep(self.recipe.train.gradient_checkpointing, offload),
            seed: self.recipe.train.seed,
            parameters: model.parameters.counts(),
            needs,
            ops,
            counting,
            model,
            gradients,
            parts,
            optimizer,
        })
    }
}

impl Count {
    /// Bytes of what lasts.
    pub fn lasting(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Takes a micro-batch through its forward and backward pass.
    ///
    /// # Errors
    /// A document longer than the model's positions.
    pub fn micro_batch(&mut self, micro: &MicroBatch) -> Result<MicroBatchCount, EngineError> {
        let device = &self.ops;
        let bytes = || device.allocated_bytes();
        self.counting.take_flops();
        let (lasting, _) = bytes();
        device.reset_peak();
        let mut differentiation = Differentiation {
            ops: device,
            model: &self.model,
            gradients: &mut self.gradients,
            heads: self.heads,
            needs: &self.needs,
            rule: self.rule,
            keep: self.keep,
            pass: Pass { training: true, adapters: true, seed: self.seed, step: 1, micro_batch: 0 },
        };
        let forward = differentiation.forward(micro)?;
        let kept = bytes().0 - lasting;
        let after_forward = bytes().1;
        let (needs, sequences) = (differentiation.needs, micro.sequences.len());
        let value = self.heads.value;
        let mut loss = |statistics: &TokenStatistics, _: Option<&[f32]>, out: &mut LossGradients| {
            out.derivatives = PerStatistic::from_fn(|statistic| match statistic {
                Statistic::Value if value => vec![0.0; sequences],
                Statistic::Logp => vec![0.0; statistics.logp.len()],
                other if needs.asks(other) => vec![0.0; statistics.logp.len()],
                _ => Vec::new(),
            });
            Ok(())
        };
        let (head, dh) = differentiation.heads(micro, &forward, &mut loss, &mut LossGradients::default())?;
        let after_heads = bytes().1;
        differentiation.backward(forward, head, &dh)?;
        let peak = bytes().1;
        let tokens = micro.batch.tokens.len();
        let name = match (self.heads.language, self.heads.value) {
            _ if peak > after_heads => "backward pass",
            _ if peak == after_forward => "forward pass",
            (true, false) => "LM head",
            (true, true) => "heads",
            (false, _) => "value head's rows",
        };
        let inputs = 4 * (tokens * self.model.blocks.len() * self.model.config.hidden_size) as u64;
        Ok(MicroBatchCount {
            kept,
            most: (name, peak - lasting - kept + device.index_bytes(tokens)),
            offloaded: if self.keep == Keep::InputsOnHost { inputs } else { 0 },
            flops: self.counting.take_flops(),
            tokens,
        })
    }
}
