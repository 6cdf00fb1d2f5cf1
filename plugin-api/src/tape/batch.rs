//! A batch on the tape: what a formula reads.

use std::cell::{OnceCell, RefCell};

use super::{Op, Tape, V};
use crate::PluginError;
use crate::loss::{Batch, Per, PerStatistic, Role, Sequence, Statistic, Totals};

/// A batch whose statistics are values on a tape.
pub struct TapeBatch<'t> {
    tape: &'t Tape,
    batch: Batch<'t>,
    /// The names of [`Needs::columns`](crate::loss::Needs::columns).
    columns: &'t [String],
    /// Σ-ready: weight · logp of completion tokens, and of all tokens.
    completion_logp: OnceCell<V<'t>>,
    weighted_logp: OnceCell<V<'t>>,
    /// The statistics that the formula read, each once.
    leaves: RefCell<PerStatistic<Option<V<'t>>>>,
    pub(super) metrics: RefCell<Vec<(String, f64)>>,
}

impl<'t> TapeBatch<'t> {
    pub(super) fn new(tape: &'t Tape, batch: Batch<'t>, columns: &'t [String]) -> TapeBatch<'t> {
        TapeBatch {
            tape,
            batch,
            columns,
            completion_logp: OnceCell::new(),
            weighted_logp: OnceCell::new(),
            leaves: RefCell::default(),
            metrics: RefCell::new(Vec::new()),
        }
    }

    /// The plain batch.
    pub fn batch(&self) -> &Batch<'t> {
        &self.batch
    }

    /// Of the whole accumulated step: what to divide by.
    pub fn totals(&self) -> &'t Totals {
        self.batch.totals
    }

    /// What [`Formula::before_step`] returned for this step.
    pub fn context(&self) -> &'t [f64] {
        self.batch.context
    }

    pub fn constant(&self, value: f64) -> V<'t> {
        self.tape.push(Op::Constant, vec![value])
    }

    /// A constant for each token; masked tokens' are taken as zero.
    pub fn constants(&self, values: impl IntoIterator<Item = f64>) -> V<'t> {
        let values = self.masked(values);
        self.tape.push(Op::Constant, values)
    }

    fn masked(&self, values: impl IntoIterator<Item = f64>) -> Vec<f64> {
        values.into_iter().zip(self.batch.weight).map(|(x, weight)| if *weight == 0.0 { 0.0 } else { x }).collect()
    }

    /// A constant for each token that is the same over a sequence: `of(sequence)`. Tokens
    /// outside of every sequence get 0.
    ///
    /// # Errors
    /// What `of` returns.
    pub fn per_sequence(&self, of: impl Fn(Seq<'_, 't>) -> Result<f64, PluginError>) -> Result<V<'t>, PluginError> {
        let mut values = vec![0.0; self.batch.len()];
        for sequence in self.sequences() {
            let value = of(sequence)?;
            values[sequence.sequence().tokens.clone()].fill(value);
        }
        Ok(self.constants(values))
    }

    /// A statistic of each token, or of each sequence for [`Statistic::Value`]: what the loss is
    /// differentiated by. A masked token's is 0.
    ///
    /// # Errors
    /// A statistic that the loss does not ask for.
    pub fn statistic(&self, statistic: Statistic) -> Result<V<'t>, PluginError> {
        if let Some(known) = self.leaves.borrow()[statistic] {
            return Ok(known);
        }
        let values = self.batch.statistic(statistic)?.iter().map(|x| f64::from(*x));
        let values = match statistic.per() {
            Per::Sequence => values.collect(),
            Per::Token => self.masked(values),
        };
        let leaf = self.tape.push(Op::Leaf, values);
        self.leaves.borrow_mut()[statistic] = Some(leaf);
        Ok(leaf)
    }

    /// The statistics that the formula read.
    pub(super) fn leaves(&self) -> PerStatistic<Option<V<'t>>> {
        *self.leaves.borrow()
    }

    /// Each token's log-probability.
    pub fn logp(&self) -> V<'t> {
        // Every batch has `logp`, so this cannot fail.
        self.statistic(Statistic::Logp).unwrap_or_else(|_| self.constant(f64::NAN))
    }

    /// The entropy of each token's distribution.
    ///
    /// # Errors
    /// As [`TapeBatch::statistic`].
    pub fn entropy(&self) -> Result<V<'t>, PluginError> {
        self.statistic(Statistic::Entropy)
    }

    /// The log-sum-exp of the logits of each token.
    ///
    /// # Errors
    /// As [`TapeBatch::statistic`].
    pub fn lse(&self) -> Result<V<'t>, PluginError> {
        self.statistic(Statistic::Lse)
    }

    /// The mean over the vocabulary of log p, of each token.
    ///
    /// # Errors
    /// As [`TapeBatch::statistic`].
    pub fn mean_logp(&self) -> Result<V<'t>, PluginError> {
        self.statistic(Statistic::MeanLogp)
    }

    /// The value head's output for each sequence.
    ///
    /// # Errors
    /// As [`TapeBatch::statistic`].
    pub fn values(&self) -> Result<V<'t>, PluginError> {
        self.statistic(Statistic::Value)
    }

    /// Each token's weight, a constant.
    pub fn weight(&self) -> V<'t> {
        self.constants(self.batch.weight.iter().map(|w| f64::from(*w)))
    }

    /// Σ weight · value over the batch's tokens, divided by the weight of the
    /// whole step: the token mean, once micro-batches are added up.
    pub fn token_mean(&self, value: V<'t>) -> V<'t> {
        (self.weight() * value).sum() / positive(self.totals().weight())
    }

    /// The sum of numbers; 0 for none.
    pub fn sum(&self, values: impl IntoIterator<Item = V<'t>>) -> V<'t> {
        values.into_iter().fold(self.constant(0.0), |sum, value| sum + value)
    }

    /// The batch's sequences in order.
    pub fn sequences(&self) -> impl Iterator<Item = Seq<'_, 't>> {
        (0..self.batch.sequences.len()).map(|index| Seq { batch: self, index })
    }

    /// (chosen, rejected) of every pair; see [`Batch::pairs`].
    pub fn pairs(&self) -> Result<Vec<(Seq<'_, 't>, Seq<'_, 't>)>, PluginError> {
        let of = |index| Seq { batch: self, index };
        Ok(self.batch.pairs()?.into_iter().map(|(chosen, rejected)| (of(chosen), of(rejected))).collect())
    }

    /// Adds to a number for the report; divide it by the step's totals, as the
    /// loss.
    pub fn metric(&self, name: &str, value: f64) {
        let mut metrics = self.metrics.borrow_mut();
        match metrics.iter_mut().find(|(known, _)| known == name) {
            Some((_, sum)) => *sum += value,
            None => metrics.push((name.to_string(), value)),
        }
    }

    fn weighted_logp(&self) -> V<'t> {
        *self.weighted_logp.get_or_init(|| self.logp() * self.weight())
    }

    fn completion_logp(&self) -> V<'t> {
        *self.completion_logp.get_or_init(|| {
            let weight = self.batch.weight.iter().zip(self.batch.completion);
            let weight = self.constants(weight.map(|(w, completion)| if *completion { f64::from(*w) } else { 0.0 }));
            self.logp() * weight
        })
    }
}

/// A divisor: 1 for an empty total, whose sums are all zero anyway.
pub fn positive(total: f64) -> f64 {
    if total > 0.0 { total } else { 1.0 }
}

/// One sequence of a [`TapeBatch`].
#[derive(Clone, Copy)]
pub struct Seq<'b, 't> {
    batch: &'b TapeBatch<'t>,
    index: usize,
}

impl<'b, 't> Seq<'b, 't> {
    fn sequence(&self) -> &'t Sequence {
        &self.batch.batch.sequences[self.index]
    }

    pub fn role(&self) -> Role {
        self.sequence().role
    }

    pub fn label(&self) -> Option<bool> {
        self.sequence().label
    }

    /// The row's reward, if the dataset has one.
    pub fn reward(&self) -> Option<f64> {
        self.sequence().reward
    }

    /// The row's number in a column of the dataset.
    ///
    /// # Errors
    /// A column that the loss does not ask for in [`Needs::columns`](crate::loss::Needs::columns).
    pub fn column(&self, name: &str) -> Result<f64, PluginError> {
        let at = self.batch.columns.iter().position(|known| known == name);
        at.and_then(|at| self.sequence().columns.get(at).copied()).ok_or_else(|| {
            PluginError::Batch(format!("the loss reads the column '{name}' but does not ask for it in its needs"))
        })
    }

    /// The summed weight of its completion tokens: their number, as a rule.
    pub fn completion_weight(&self) -> f64 {
        self.completion_tokens().map(|i| f64::from(self.batch.batch.weight[i])).sum()
    }

    fn completion_tokens(&self) -> impl Iterator<Item = usize> + use<'t> {
        let completion = self.batch.batch.completion;
        self.sequence().tokens.clone().filter(move |i| completion[*i])
    }

    /// Σ weight · logp over its completion.
    pub fn logp(&self) -> V<'t> {
        let tokens = &self.sequence().tokens;
        self.batch.completion_logp().range_sum(tokens.start, tokens.end)
    }

    /// [`Seq::logp`] over the completion's weight: the mean log-probability.
    pub fn mean_logp(&self) -> V<'t> {
        self.logp() / positive(self.completion_weight())
    }

    /// Σ weight · logp over all its trained tokens, the prompt's if they are trained.
    pub fn whole_logp(&self) -> V<'t> {
        let tokens = &self.sequence().tokens;
        self.batch.weighted_logp().range_sum(tokens.start, tokens.end)
    }

    /// Σ weight · reference logp over its completion; NaN when the loss did not
    /// ask for the reference, which fails the step.
    pub fn reference_logp(&self) -> f64 {
        let Some(reference) = self.batch.batch.reference_logp else {
            return f64::NAN;
        };
        let weight = self.batch.batch.weight;
        self.completion_tokens()
            .filter(|i| weight[*i] != 0.0)
            .map(|i| f64::from(weight[i]) * f64::from(reference[i]))
            .sum()
    }

    /// log π(y|x) − log π_ref(y|x), summed over the completion.
    pub fn log_ratio(&self) -> V<'t> {
        self.logp() - self.reference_logp()
    }

    /// [`Seq::log_ratio`] over the completion's weight.
    pub fn mean_log_ratio(&self) -> V<'t> {
        self.log_ratio() / positive(self.completion_weight())
    }

    /// The value head's number.
    pub fn value(&self) -> Result<V<'t>, PluginError> {
        let values = self.batch.values()?;
        let value = self.batch.tape.nodes.borrow()[values.id].value[self.index];
        Ok(self.batch.tape.push(Op::Element(values.id, self.index), vec![value]))
    }
}
