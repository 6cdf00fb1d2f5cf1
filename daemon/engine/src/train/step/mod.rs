//! One optimizer step: forward and backward over its micro-batches, the norm
//! of the gradient, the update.

mod cut;
mod evaluate;
mod gradient;
mod loss;
mod memory;

use finetuned_data::{Examples, Row};
use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::alignment::{AlignmentNeeds, DataKind};
use finetuned_plugin_api::loss::{Gradients as LossGradients, Needs, Statistic};
use finetuned_plugin_api::optimizer::Optimizer;
use finetuned_plugin_api::program::Scalars;
use finetuned_plugin_api::registry::Objective;
use finetuned_shaders::Device;

use self::cut::Cut;
pub(crate) use self::gradient::Differentiation;
use self::loss::LossCall;
pub use self::memory::StepBytes;
use super::heads::Heads;
use super::micro_batch::{MicroBatch, Placed};
use super::optimize::Rules;
use super::reference::Reference;
use crate::dataset;
use crate::error::EngineError;
use crate::model::context::Pass;
use crate::model::decoder::{Decoder, Keep};
use crate::model::parameters::Gradients;

/// The choices of the recipe that a step reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOptions {
    /// Sequences per micro-batch.
    pub micro_batch_size: usize,
    /// Keep only each layer's input, and compute the rest again in the backward pass.
    pub gradient_checkpointing: bool,
    /// Move what checkpointing keeps to host memory. Changes nothing without it.
    pub offload_activations: bool,
    /// 0: no clipping.
    pub max_grad_norm: f64,
    pub seed: u64,
}

impl StepOptions {
    fn keep(&self) -> Keep {
        keep(self.gradient_checkpointing, self.offload_activations)
    }
}

/// What the forward pass of a training step keeps.
pub(crate) fn keep(gradient_checkpointing: bool, offload_activations: bool) -> Keep {
    match (gradient_checkpointing, offload_activations) {
        (false, _) => Keep::Everything,
        (true, false) => Keep::Inputs,
        (true, true) => Keep::InputsOnHost,
    }
}

/// What a step, or a validation, computed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepResult {
    pub loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub tokens: usize,
    pub trained_tokens: usize,
    pub metrics: Vec<(String, f64)>,
    /// Sequences per micro-batch at the end of the step: fewer than asked for if
    /// memory ran short.
    pub micro_batch_size: usize,
}

/// A model in training: its objective, optimizer and gradients.
pub struct Trainer {
    pub ops: Device,
    pub model: Decoder,
    pub rules: Rules,
    objective: Objective,
    needs: Needs,
    heads: Heads,
    alignment: Option<AlignmentNeeds>,
    reference: Option<Reference>,
    gradients: Gradients,
    options: StepOptions,
    /// Bytes that a step allocates; empty if nobody counted.
    step_bytes: StepBytes,
    /// What the loss answered last; kept so that its vectors are reused.
    out: LossGradients,
}

impl Trainer {
    /// `fresh_adapter`: the adapters were just made, so that the model without
    /// them is the policy the run starts from.
    ///
    /// # Errors
    /// An objective that asks for what the model does not have; no memory.
    pub fn new(
        ops: Device,
        model: Decoder,
        objective: Objective,
        optimizer: Box<dyn Optimizer>,
        options: StepOptions,
        fresh_adapter: bool,
    ) -> Result<Trainer, EngineError> {
        let needs = objective.loss().needs();
        let alignment = objective.alignment_needs();
        let heads = Heads::of(&objective);
        if heads.value && !needs.asks(Statistic::Value) {
            return Err(PluginError::Failed(
                "the alignment method declares a value head, and its objective does not ask for values".into(),
            )
            .into());
        }
        if heads.value && model.value_head.is_none() {
            return Err(EngineError::NoValueHead);
        }
        let reference = if needs.reference_logp { Some(Reference::freeze(&ops, &model, fresh_adapter)?) } else { None };
        let rules = Rules::new(&ops, &model, optimizer)?;
        let gradients = Gradients::zeros(&ops, &model.parameters)?;
        Ok(Trainer {
            ops,
            model,
            rules,
            objective,
            needs,
            heads,
            alignment,
            reference,
            gradients,
            options,
            step_bytes: StepBytes::default(),
            out: LossGradients::default(),
        })
    }

    /// Refuses data that the objective does not learn from.
    ///
    /// # Errors
    /// Names what the dataset holds and what the objective asks for.
    pub fn check_data(&self, examples: &Examples) -> Result<(), EngineError> {
        dataset::fits(examples.kind, self.alignment.map_or(DataKind::Supervised, |a| a.data))
    }

    /// Takes step `step` (from 1) over these rows. `progress` is called before each
    /// micro-batch with its number and their count; if it returns false, the step
    /// ends without an update and the result is None.
    ///
    /// # Errors
    /// A loss or gradient that is not finite, by name; a failing device.
    pub fn step(
        &mut self,
        examples: &Examples,
        rows: &[Row],
        step: usize,
        learning_rate: f64,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<StepResult>, EngineError> {
        let ops = &self.ops.clone();
        let mut result = loop {
            match self.accumulate(examples, rows, step, progress) {
                Ok(Some(result)) => break result,
                Ok(None) => return Ok(None),
                // Nothing was updated yet.
                Err(error) => self.take_less(error)?,
            }
        };
        if !result.loss.is_finite() {
            return Err(not_finite(step, "the loss"));
        }
        let gradients: Vec<_> = self.gradients.iter().map(|(_, g)| g).collect();
        result.grad_norm = ops.sum_squares(&gradients)?.sqrt();
        if !result.grad_norm.is_finite() {
            return Err(self.blame(step));
        }
        let limit = self.options.max_grad_norm;
        if limit > 0.0 && result.grad_norm > limit {
            // As torch.nn.utils.clip_grad_norm_: the small number keeps the quotient finite.
            let factor = (limit / (result.grad_norm + 1e-6)) as f32;
            for (_, gradient) in self.gradients.iter_mut() {
                ops.scale(gradient, factor)?;
            }
        }
        let scalars = Scalars { learning_rate, step: step as u64 };
        self.rules.step(ops, &mut self.model, &self.gradients, &scalars)?;
        let metrics = std::mem::take(&mut result.metrics);
        self.objective.loss_mut().end_step(result.loss, &metrics)?;
        result.metrics = metrics;
        Ok(Some(result))
    }

    /// The gradients of a whole batch, micro-batch by micro-batch.
    fn accumulate(
        &mut self,
        examples: &Examples,
        rows: &[Row],
        step: usize,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<StepResult>, EngineError> {
        let ops = self.ops.clone();
        let cut = self.cut(examples, rows)?;
        self.gradients.clear(&ops)?;
        let mut result = StepResult {
            trained_tokens: cut.trained_tokens,
            micro_batch_size: self.options.micro_batch_size,
            ..StepResult::default()
        };
        let count = cut.micro_batches.len();
        for (number, documents) in cut.micro_batches.iter().enumerate() {
            if !progress(number, count) {
                return Ok(None);
            }
            let pass = Pass {
                training: true,
                adapters: true,
                seed: self.options.seed,
                step: step as u32,
                micro_batch: number as u32,
            };
            self.differentiate(documents, &cut, pass, &mut result)?;
        }
        Ok(Some(result))
    }

    /// Adds the gradients of one micro-batch.
    fn differentiate(
        &mut self,
        documents: &[Placed],
        cut: &Cut,
        pass: Pass,
        result: &mut StepResult,
    ) -> Result<(), EngineError> {
        let micro = MicroBatch::new(documents, &self.needs);
        result.tokens += micro.batch.tokens.len();
        if self.nothing_to_learn(&micro) {
            return Ok(());
        }
        let reference = self.reference_logp(documents)?;
        let call = LossCall {
            objective: &self.objective,
            needs: &self.needs,
            heads: self.heads,
            micro: &micro,
            reference: reference.as_deref(),
            cut,
        };
        let mut loss = |statistics: &_, values: Option<&_>, out: &mut _| call.evaluate(statistics, values, out);
        let mut differentiation = Differentiation {
            ops: &self.ops,
            model: &self.model,
            gradients: &mut self.gradients,
            heads: self.heads,
            needs: &self.needs,
            rule: self.objective.loss().separable(&cut.totals),
            keep: self.options.keep(),
            pass,
        };
        let passed = differentiation.forward(&micro)?;
        let (head, dh) = differentiation.heads(&micro, &passed, &mut loss, &mut self.out)?;
        result.loss += self.out.loss;
        add_metrics(&mut result.metrics, &self.out.metrics);
        differentiation.backward(passed, head, &dh)
    }

    /// State of the loss plugin, for the checkpoint.
    ///
    /// # Errors
    /// A plugin that cannot tell its state.
    pub fn loss_state(&self) -> Result<Vec<u8>, EngineError> {
        Ok(self.objective.loss().state()?)
    }

    pub fn restore_loss(&mut self, state: &[u8]) -> Result<(), EngineError> {
        Ok(self.objective.loss_mut().restore(state)?)
    }

    /// The last step's gradients, clipped if the step clipped them.
    pub fn gradients(&self) -> &Gradients {
        &self.gradients
    }

    /// Frees gradients, so that a saved model can be read back beside this one.
    pub fn into_model(self) -> (Device, Decoder) {
        (self.ops, self.model)
    }

    /// Which gradient is not finite.
    fn blame(&self, step: usize) -> EngineError {
        for (id, gradient) in self.gradients.iter() {
            if let Ok(sum) = self.ops.sum_squares(&[gradient])
                && !sum.is_finite()
            {
                return not_finite(step, &format!("the gradient of {}", self.model.parameters.get(id).name));
            }
        }
        not_finite(step, "the gradient")
    }
}

fn not_finite(step: usize, what: &str) -> EngineError {
    EngineError::NotFinite {
        step,
        what: what.to_string(),
        remedy: "the last checkpoint is kept; lower train.learning_rate or train.max_grad_norm, or add warm-up".into(),
    }
}

fn add_metrics(sum: &mut Vec<(String, f64)>, add: &[(String, f64)]) {
    for (name, value) in add {
        match sum.iter_mut().find(|(known, _)| known == name) {
            Some((_, total)) => *total += value,
            None => sum.push((name.clone(), *value)),
        }
    }
}
