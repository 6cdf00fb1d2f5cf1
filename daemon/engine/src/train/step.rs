//! One optimizer step: forward and backward over its micro-batches, the norm,
//! the update; and the same objective without gradient for validation.

use std::sync::Arc;

use finetuned_data::{Examples, Row};
use finetuned_plugin_api::alignment::{AlignmentNeeds, DataKind};
use finetuned_plugin_api::loss::{self, BeforeStep, Needs, Role, TokenRule, Totals};
use finetuned_plugin_api::optimizer::Optimizer;
use finetuned_plugin_api::program::Scalars;
use finetuned_plugin_api::registry::Objective;
use finetuned_shaders::{Device, StatisticSet, Tensor, TensorError, TokenCoefficients, TokenStatistics};

use super::heads::{HeadInputs, Heads};
use super::optimize::Rules;
use super::reference::{Reference, token_logp};
use super::units::{Document, MicroBatch, documents};
use crate::error::EngineError;
use crate::model::decoder::{Decoder, Keep};
use crate::model::context::Pass;
use crate::model::parameters::Gradients;
use crate::plan::StepBytes;

/// The choices of the recipe that a step reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOptions {
    /// Units of a forward pass.
    pub micro_batch_size: usize,
    pub gradient_checkpointing: bool,
    /// Of what checkpointing keeps, to host memory; nothing without it.
    pub offload_activations: bool,
    /// 0: no clipping.
    pub max_grad_norm: f64,
    pub seed: u64,
}

impl StepOptions {
    fn keep(&self) -> Keep {
        match (self.gradient_checkpointing, self.offload_activations) {
            (false, _) => Keep::Everything,
            (true, false) => Keep::Inputs,
            (true, true) => Keep::InputsOnHost,
        }
    }
}

/// What a step was.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepResult {
    pub loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub tokens: usize,
    pub trained_tokens: usize,
    pub metrics: Vec<(String, f64)>,
    /// Units of a forward pass that the step ended with: fewer than asked for
    /// where memory ran short.
    pub micro_batch_size: usize,
}

pub struct Trainer {
    pub ops: Arc<Device>,
    pub model: Decoder,
    pub rules: Rules,
    objective: Objective,
    needs: Needs,
    heads: Heads,
    alignment: Option<AlignmentNeeds>,
    reference: Option<Reference>,
    gradients: Gradients,
    options: StepOptions,
    /// What steps make, where it was counted.
    step_bytes: StepBytes,
    /// Kept between steps: a plugin's results.
    out: loss::Gradients,
}

impl Trainer {
    /// `fresh_adapter`: the adapters were just made, so that the model without
    /// them is the policy the run starts from.
    ///
    /// # Errors
    /// An objective that asks for what the engine has not, no memory.
    pub fn new(
        ops: Arc<Device>,
        model: Decoder,
        objective: Objective,
        optimizer: Box<dyn Optimizer>,
        options: StepOptions,
        fresh_adapter: bool,
    ) -> Result<Trainer, EngineError> {
        let needs = objective.loss().needs();
        let alignment = objective.alignment_needs();
        let heads = Heads::of(&objective);
        if heads.value && !needs.value {
            return Err(EngineError::Other(
                "the alignment method declares a value head, and its objective does not ask for values".into(),
            ));
        }
        if heads.value && model.value_head.is_none() {
            return Err(EngineError::Other("the objective asks for values, and the model has no value head".into()));
        }
        let reference =
            if needs.reference_logp { Some(Reference::freeze(ops.as_ref(), &model, fresh_adapter)?) } else { None };
        let rules = Rules::new(ops.as_ref(), &model, optimizer)?;
        let gradients = Gradients::zeros(ops.as_ref(), &model.parameters)?;
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
            out: loss::Gradients::default(),
        })
    }

    /// Takes the memory for what steps make, before the first one; where the device
    /// has not so much, for fewer units at a time. Returns how many these are.
    ///
    /// # Errors
    /// A failing device. Memory for one unit may still be found in the step itself.
    pub fn reserve(&mut self, step_bytes: StepBytes) -> Result<usize, EngineError> {
        self.step_bytes = step_bytes;
        self.reserve_again()?;
        Ok(self.options.micro_batch_size)
    }

    fn reserve_again(&mut self) -> Result<(), EngineError> {
        while let Some(bytes) = self.step_bytes.at(self.options.micro_batch_size) {
            match self.ops.reserve(bytes) {
                Err(TensorError::Memory { .. }) if self.options.micro_batch_size == 1 => break,
                Err(error) => self.halve(error.into())?,
                Ok(()) => break,
            }
        }
        Ok(())
    }

    /// The data must be what the objective learns from.
    ///
    /// # Errors
    /// Names both.
    pub fn check_data(&self, examples: &Examples) -> Result<(), EngineError> {
        let wanted = self.alignment.map_or(DataKind::Supervised, |a| a.data);
        let (found, fits) = match examples {
            Examples::Supervised(_) => ("rows to imitate", wanted == DataKind::Supervised),
            Examples::Pairs(_) => ("preference pairs (chosen, rejected)", wanted == DataKind::Pairs),
            Examples::Labelled(_) => ("labelled completions", wanted == DataKind::Labelled),
        };
        if fits {
            return Ok(());
        }
        let asks = match wanted {
            DataKind::Supervised => "rows to imitate",
            DataKind::Pairs => "preference pairs (prompt, chosen, rejected)",
            DataKind::Labelled => "labelled completions (prompt, completion, label)",
            DataKind::Rewards => "completions with rewards",
            DataKind::Prompts => "prompts alone",
        };
        let remedy = match examples {
            Examples::Supervised(_) => "",
            Examples::Pairs(_) => "; for such data set loss = \"dpo\" (or orpo, simpo, cpo, reward-model)",
            Examples::Labelled(_) => "; for such data set loss = \"kto\"",
        };
        Err(EngineError::Other(format!("the dataset holds {found}, the loss learns from {asks}{remedy}")))
    }

    /// One step (from 1) over these rows. `stop` is asked between micro-batches
    /// and ends the step without an update: the result is then None.
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
        let ops = self.ops.clone();
        let ops = ops.as_ref();
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
        self.objective.loss_mut().end_step(result.loss, &metrics);
        result.metrics = metrics;
        Ok(Some(result))
    }

    /// Where memory ran short: half as many units at a time, twice as often, so
    /// that the batch and its gradient stay what they are. Any other error, and
    /// one unit that does not fit, comes back.
    fn take_less(&mut self, error: EngineError) -> Result<(), EngineError> {
        self.halve(error)?;
        self.reserve_again()
    }

    fn halve(&mut self, error: EngineError) -> Result<(), EngineError> {
        let EngineError::Tensor(TensorError::Memory { .. }) = error else { return Err(error) };
        if self.options.micro_batch_size <= 1 {
            return Err(EngineError::StepTooLarge { reason: error.to_string(), remedy: self.less() });
        }
        self.options.micro_batch_size = self.options.micro_batch_size.div_ceil(2);
        self.ops.trim();
        Ok(())
    }

    /// What would make a step smaller whose sequences are taken one at a time.
    fn less(&self) -> String {
        let setting = match self.options.keep() {
            Keep::Inputs if !self.ops.info().on_host => "set train.offload_activations = true, ",
            Keep::Inputs | Keep::InputsOnHost => "",
            _ => "set train.gradient_checkpointing = true, ",
        };
        format!("{setting}lower train.sequence_length, or end the programs beside it")
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
        let plan = self.plan(examples, rows)?;
        self.gradients.clear(ops.as_ref())?;
        let mut result = StepResult {
            trained_tokens: plan.trained_tokens,
            micro_batch_size: self.options.micro_batch_size,
            ..StepResult::default()
        };
        let count = plan.micro_batches.len();
        for (number, documents) in plan.micro_batches.iter().enumerate() {
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
            self.forward_backward(documents, &plan, &pass, step, &mut result)?;
        }
        Ok(Some(result))
    }

    /// The objective over all these rows as one batch, without gradient:
    /// (loss, trained tokens, metrics). Weighted by tokens, as the training loss
    /// is. `step` updates were made before.
    ///
    /// # Errors
    /// A loss that is not finite, by name; a failing device.
    pub fn evaluate(&mut self, examples: &Examples, rows: &[Row], step: usize) -> Result<StepResult, EngineError> {
        loop {
            match self.evaluate_once(examples, rows, step) {
                Err(error) => self.take_less(error)?,
                result => return result,
            }
        }
    }

    fn evaluate_once(&mut self, examples: &Examples, rows: &[Row], step: usize) -> Result<StepResult, EngineError> {
        let ops = self.ops.clone();
        let ops = ops.as_ref();
        let plan = self.plan(examples, rows)?;
        let mut result = StepResult { trained_tokens: plan.trained_tokens, ..StepResult::default() };
        let pass = Pass::evaluation(true);
        for documents in &plan.micro_batches {
            let micro = MicroBatch::new(documents, &self.needs);
            result.tokens += micro.batch.tokens.len();
            if self.nothing_to_learn(&micro) {
                continue;
            }
            let reference = self.reference_logp(documents)?;
            let forward = self.model.forward(ops, &micro.batch, &pass, Keep::Nothing)?;
            let head = self.model.head_input(ops, &forward, &self.heads.rows(&micro)?)?;
            drop(forward);
            let inputs = self.heads.cut(ops, &micro, &head.h)?;
            let statistics = match &inputs.language {
                Some(h) => ops.token_logp(h, &self.model.lm_head(), &micro.targets, self.wanted())?,
                None => no_statistics(&micro),
            };
            let values = self.values(&inputs)?;
            self.call_loss(&micro, &statistics, reference.as_deref(), values.as_deref(), &plan)?;
            result.loss += self.out.loss;
            add_metrics(&mut result.metrics, &self.out.metrics);
        }
        if !result.loss.is_finite() {
            // The weights are those of the step that would come next.
            return Err(not_finite(step + 1, "the held-out loss"));
        }
        Ok(result)
    }

    /// State of the loss plugin, for the checkpoint.
    pub fn loss_state(&self) -> Vec<u8> {
        self.objective.loss().state()
    }

    pub fn restore_loss(&mut self, state: &[u8]) -> Result<(), EngineError> {
        Ok(self.objective.loss_mut().restore(state)?)
    }

    /// The last step's gradients, clipped where the step clipped them.
    pub fn gradients(&self) -> &Gradients {
        &self.gradients
    }

    /// Frees gradients, so that a saved model can be read back beside this one.
    pub fn into_model(self) -> (Arc<Device>, Decoder) {
        (self.ops, self.model)
    }

    /// A micro-batch's gradients: the fused head where the loss's derivatives
    /// are known beforehand, else statistics, loss, head again.
    fn forward_backward(
        &mut self,
        documents: &[Document],
        plan: &StepPlan,
        pass: &Pass,
        step: usize,
        result: &mut StepResult,
    ) -> Result<(), EngineError> {
        let ops = self.ops.clone();
        let ops = ops.as_ref();
        let micro = MicroBatch::new(documents, &self.needs);
        result.tokens += micro.batch.tokens.len();
        if self.nothing_to_learn(&micro) {
            return Ok(());
        }
        let reference = self.reference_logp(documents)?;
        let forward = self.model.forward(ops, &micro.batch, pass, self.options.keep())?;
        let head = self.model.head_input(ops, &forward, &self.heads.rows(&micro)?)?;
        let inputs = self.heads.cut(ops, &micro, &head.h)?;
        let values = self.values(&inputs)?;
        if values.iter().flatten().any(|value| !value.is_finite()) {
            return Err(not_finite(step, "a sequence's value"));
        }
        let rule = self.objective.loss().separable(&plan.totals);
        let dlanguage = match (&inputs.language, rule) {
            (None, _) => {
                self.call_loss(&micro, &no_statistics(&micro), reference.as_deref(), values.as_deref(), plan)?;
                None
            }
            (Some(h), Some(rule)) => {
                let coefficients = separable_coefficients(&rule, &micro.weight);
                let (statistics, dh) = ops.token_logp_fused(
                    h,
                    &self.model.lm_head(),
                    &micro.targets,
                    self.wanted(),
                    &coefficients,
                    self.gradients.get_mut(self.model.head),
                )?;
                self.check_statistics(&statistics, step)?;
                self.call_loss(&micro, &statistics, reference.as_deref(), values.as_deref(), plan)?;
                Some(dh)
            }
            // Through a frozen head only its input's gradient is wanted, which is
            // linear in each token's derivative: one pass with derivatives of 1 now,
            // scaled by the loss's own once they are known.
            (Some(h), None) if only_logp(&self.needs) && self.gradients.get(self.model.head).is_none() => {
                let units = TokenCoefficients { logp: vec![1.0; micro.targets.len()], ..TokenCoefficients::default() };
                let lm_head = self.model.lm_head();
                let (statistics, mut dh) =
                    ops.token_logp_fused(h, &lm_head, &micro.targets, self.wanted(), &units, None)?;
                self.check_statistics(&statistics, step)?;
                self.call_loss(&micro, &statistics, reference.as_deref(), values.as_deref(), plan)?;
                ops.scale_rows(&mut dh, &self.out.dlogp)?;
                Some(dh)
            }
            (Some(h), None) => {
                let lm_head = self.model.lm_head();
                let statistics = ops.token_logp(h, &lm_head, &micro.targets, self.wanted())?;
                self.check_statistics(&statistics, step)?;
                self.call_loss(&micro, &statistics, reference.as_deref(), values.as_deref(), plan)?;
                let coefficients = TokenCoefficients {
                    logp: self.out.dlogp.clone(),
                    lse: self.out.dlse.clone().unwrap_or_default(),
                    entropy: self.out.dentropy.clone().unwrap_or_default(),
                    mean_logp: self.out.dmean_logp.clone().unwrap_or_default(),
                };
                Some(ops.token_logp_backward(
                    h,
                    &self.model.lm_head(),
                    &micro.targets,
                    &coefficients,
                    self.gradients.get_mut(self.model.head),
                )?)
            }
        };
        let dvalue = self.value_backward(&inputs)?;
        drop(inputs);
        let dh = HeadInputs { language: dlanguage, value: dvalue }.join(ops)?;
        result.loss += self.out.loss;
        add_metrics(&mut result.metrics, &self.out.metrics);
        self.model.backward(ops, forward, head, &dh, &mut self.gradients)?;
        Ok(())
    }

    /// Cuts a step into micro-batches and computes what belongs to the whole.
    fn plan<'a>(&mut self, examples: &'a Examples, rows: &'a [Row]) -> Result<StepPlan<'a>, EngineError> {
        let kl = self.alignment.is_some_and(|a| a.kl_completions);
        let batch: Vec<&Row> = rows.iter().collect();
        let mut totals = Totals::default();
        let mut trained_tokens = 0;
        let mut micro_batches = Vec::new();
        let mut mismatched = Vec::new();
        let units: Vec<Vec<Document>> = (0..batch.len()).map(|at| documents(examples, &batch, at, kl)).collect();
        for chunk in units.chunks(self.options.micro_batch_size.max(1)) {
            let all: Vec<Document> = chunk.concat();
            let micro = MicroBatch::new(&all, &self.needs);
            totals.add(&micro.totals());
            let (apart, trained): (Vec<_>, Vec<_>) = all.into_iter().partition(|d| d.role == Role::KlCompletion);
            trained_tokens += trained.iter().map(Document::targets).sum::<usize>();
            mismatched.extend(apart);
            micro_batches.push(trained);
        }
        let before: Vec<Document> = match self.needs.before_step {
            BeforeStep::Nothing => Vec::new(),
            BeforeStep::KlCompletions => mismatched,
            BeforeStep::Everything => micro_batches.iter().flatten().copied().chain(mismatched).collect(),
        };
        let mut plan = StepPlan { micro_batches, totals, trained_tokens, context: Vec::new() };
        if !before.is_empty() {
            plan.context = self.before_step(&before, &plan.totals)?;
        }
        Ok(plan)
    }

    /// The pass without gradient that some losses ask for before a step.
    fn before_step(&mut self, documents: &[Document], totals: &Totals) -> Result<Vec<f64>, EngineError> {
        let ops = self.ops.clone();
        let mut logp = Vec::new();
        for chunk in documents.chunks(self.options.micro_batch_size.max(1)) {
            let micro = MicroBatch::new(chunk, &self.needs);
            logp.extend(token_logp(ops.as_ref(), &self.model, &micro, &Pass::evaluation(true))?);
        }
        let reference = self.reference_logp(documents)?;
        let micro = MicroBatch::new(documents, &self.needs);
        // Only log-probabilities are known before the step: what else the loss
        // asks for is handed over as zeros.
        let zeros = vec![0.0; logp.len()];
        let batch = loss::Batch {
            logp: &logp,
            entropy: self.needs.entropy.then_some(&zeros[..]),
            lse: self.needs.lse.then_some(&zeros[..]),
            mean_logp: self.needs.mean_logp.then_some(&zeros[..]),
            reference_logp: reference.as_deref(),
            values: None,
            weight: &micro.weight,
            completion: &micro.completion,
            token: &micro.targets,
            sequences: &micro.sequences,
            totals,
            context: &[],
        };
        Ok(self.objective.loss().prepare(&batch)?)
    }

    fn reference_logp(&mut self, documents: &[Document]) -> Result<Option<Vec<f32>>, EngineError> {
        let Some(reference) = self.reference.as_mut() else { return Ok(None) };
        Ok(Some(reference.logp(self.ops.as_ref(), &mut self.model, documents, &self.needs)?))
    }

    /// A micro-batch that gives no head a row.
    fn nothing_to_learn(&self, micro: &MicroBatch) -> bool {
        micro.targets.is_empty() && (!self.heads.value || micro.sequences.is_empty())
    }

    /// The value head's number for each sequence, where the objective asks.
    fn values(&self, inputs: &HeadInputs) -> Result<Option<Vec<f32>>, EngineError> {
        let (Some(h), Some(head)) = (&inputs.value, &self.model.value_head) else { return Ok(None) };
        let values = head.forward(self.ops.as_ref(), &self.model.parameters, h)?;
        Ok(Some(self.ops.read(&values)?))
    }

    /// From the loss's derivatives by the values to the head's own gradient and
    /// that of its input.
    fn value_backward(&mut self, inputs: &HeadInputs) -> Result<Option<Tensor>, EngineError> {
        let (Some(h), Some(head), Some(dvalue)) = (&inputs.value, &self.model.value_head, &self.out.dvalue) else {
            return Ok(None);
        };
        let dvalue = self.ops.upload(&[dvalue.len(), 1], dvalue)?;
        Ok(Some(head.backward(self.ops.as_ref(), &self.model.parameters, &mut self.gradients, &dvalue, h)?))
    }

    /// Evaluates the loss into `self.out` and checks what came back.
    fn call_loss(
        &mut self,
        micro: &MicroBatch,
        statistics: &TokenStatistics,
        reference: Option<&[f32]>,
        values: Option<&[f32]>,
        plan: &StepPlan,
    ) -> Result<(), EngineError> {
        let batch = loss::Batch {
            logp: &statistics.logp,
            entropy: self.needs.entropy.then_some(&statistics.entropy),
            lse: self.needs.lse.then_some(&statistics.lse),
            mean_logp: self.needs.mean_logp.then_some(&statistics.mean_logp),
            reference_logp: reference,
            values,
            weight: &micro.weight,
            completion: &micro.completion,
            token: &micro.targets,
            sequences: &micro.sequences,
            totals: &plan.totals,
            context: &plan.context,
        };
        self.objective.loss().evaluate(&batch, &mut self.out)?;
        self.out.check(&self.needs, &batch)?;
        if !self.heads.language && self.out.dlogp.iter().any(|d| *d != 0.0) {
            return Err(EngineError::Other(
                "the loss derives by log-probabilities, which a loss that asks for values alone is not given; \
                 let it ask for another token statistic (lse) too"
                    .into(),
            ));
        }
        Ok(())
    }

    fn wanted(&self) -> StatisticSet {
        StatisticSet { entropy: self.needs.entropy, mean_logp: self.needs.mean_logp, correct: false }
    }

    /// A model whose log-probabilities are not numbers has diverged, or its
    /// weights are damaged; said before a plugin is blamed.
    fn check_statistics(&self, statistics: &TokenStatistics, step: usize) -> Result<(), EngineError> {
        if statistics.logp.iter().all(|l| l.is_finite()) {
            Ok(())
        } else {
            Err(not_finite(step, "a token's log-probability"))
        }
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

struct StepPlan<'a> {
    micro_batches: Vec<Vec<Document<'a>>>,
    totals: Totals,
    trained_tokens: usize,
    context: Vec<f64>,
}

fn not_finite(step: usize, what: &str) -> EngineError {
    EngineError::NotFinite {
        step,
        what: what.to_string(),
        remedy: "the last checkpoint is kept; lower train.learning_rate or train.max_grad_norm, or add warm-up".into(),
    }
}

/// What a loss sees that reads the value head alone: the counted tokens, with
/// zeros for their log-probabilities, which nobody computed.
fn no_statistics(micro: &MicroBatch) -> TokenStatistics {
    TokenStatistics { logp: vec![0.0; micro.targets.len()], ..TokenStatistics::default() }
}

/// Whether a loss has derivatives by `logp` alone.
pub(crate) fn only_logp(needs: &Needs) -> bool {
    !(needs.entropy || needs.lse || needs.mean_logp)
}

fn separable_coefficients(rule: &TokenRule, weight: &[f32]) -> TokenCoefficients {
    let each = |coefficient: f64| -> Vec<f32> {
        if coefficient == 0.0 {
            return Vec::new();
        }
        weight.iter().map(|w| TokenRule::derivative(coefficient, *w)).collect()
    };
    TokenCoefficients {
        logp: each(rule.logp),
        lse: each(rule.lse),
        entropy: each(rule.entropy),
        mean_logp: each(rule.mean_logp),
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
