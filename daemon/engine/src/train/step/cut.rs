//! A batch cut into micro-batches, and what the loss must know of all of it.

use finetuned_data::{Examples, Row};
use finetuned_plugin_api::loss::{self, BeforeStep, PerStatistic, Statistic, Totals};

use super::Trainer;
use crate::error::EngineError;
use crate::model::context::Pass;
use crate::train::micro_batch::{MicroBatch, Placed, documents};
use crate::train::reference::token_logp;

/// A batch in micro-batches.
pub(super) struct Cut<'a> {
    pub micro_batches: Vec<Vec<Placed<'a>>>,
    /// What the loss divides by: sums over the whole batch.
    pub totals: Totals,
    pub trained_tokens: usize,
    /// What the loss computed before the step, if it asked for a pass.
    pub context: Vec<f64>,
}

impl Trainer {
    /// Cuts a batch into micro-batches and computes what belongs to all of it.
    pub(super) fn cut<'a>(&mut self, examples: &'a Examples, rows: &'a [Row]) -> Result<Cut<'a>, EngineError> {
        let kl = self.alignment.is_some_and(|a| a.kl_completions);
        let batch: Vec<&Row> = rows.iter().collect();
        let mut totals = Totals::default();
        let mut trained_tokens = 0;
        let mut micro_batches = Vec::new();
        let mut mismatched = Vec::new();
        let rows: Vec<Vec<Placed>> = (0..batch.len()).map(|at| documents(examples, &batch, at, kl)).collect();
        for chunk in rows.chunks(self.options.micro_batch_size.max(1)) {
            let all: Vec<Placed> = chunk.concat();
            let micro = MicroBatch::new(&all, &self.needs);
            totals.add(&micro.totals());
            let (trained, apart): (Vec<_>, Vec<_>) = all.into_iter().partition(Placed::is_trained);
            trained_tokens += trained.iter().map(|placed| placed.document.trained_tokens()).sum::<usize>();
            mismatched.extend(apart);
            micro_batches.push(trained);
        }
        let before: Vec<Placed> = match self.needs.before_step {
            BeforeStep::Nothing => Vec::new(),
            BeforeStep::KlCompletions => mismatched,
            BeforeStep::Everything => micro_batches.iter().flatten().cloned().chain(mismatched).collect(),
        };
        let mut cut = Cut { micro_batches, totals, trained_tokens, context: Vec::new() };
        if !before.is_empty() {
            cut.context = self.before_step(&before, &cut.totals)?;
        }
        Ok(cut)
    }

    /// The pass without gradient that some losses ask for before a step.
    fn before_step(&mut self, documents: &[Placed], totals: &Totals) -> Result<Vec<f64>, EngineError> {
        let ops = self.ops.clone();
        let mut logp = Vec::new();
        for chunk in documents.chunks(self.options.micro_batch_size.max(1)) {
            let micro = MicroBatch::new(chunk, &self.needs);
            logp.extend(token_logp(&ops, &self.model, &micro, &Pass::evaluation(true))?);
        }
        let reference = self.reference_logp(documents)?;
        let micro = MicroBatch::new(documents, &self.needs);
        // Only log-probabilities are known before the step: what else the loss
        // asks for is handed over as zeros.
        let zeros = vec![0.0; logp.len()];
        let batch = loss::Batch {
            statistics: PerStatistic::from_fn(|statistic| match statistic {
                Statistic::Logp => Some(&logp[..]),
                Statistic::Value => None,
                other => self.needs.asks(other).then_some(&zeros[..]),
            }),
            reference_logp: reference.as_deref(),
            weight: &micro.weight,
            completion: &micro.completion,
            token: &micro.targets,
            sequences: &micro.sequences,
            totals,
            context: &[],
        };
        Ok(self.objective.loss().before_step(&batch)?)
    }
}
