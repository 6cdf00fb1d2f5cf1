//! A loss reads token statistics, never logits.
//!
//! The engine computes [statistics](crate::statistic) of the trained tokens of a micro-batch,
//! such as the log-probability of each token. The loss returns one number, and its derivative
//! by each statistic. The engine turns those into gradients inside the LM head, which runs over
//! the vocabulary in chunks. So kilobytes cross between engine and loss, whatever the size of
//! the vocabulary, and a loss needs no GPU code.
//!
//! # Accumulation
//! A step may be cut into micro-batches in any way; only pairs stay whole. Each [`Batch`]
//! carries the [`Totals`] of the whole step. A loss divides by those, never by what it sees, so
//! that the parts of the micro-batches add up: one micro-batch of 8 equals 8 of 1. Metrics add
//! up in the same way.
//!
//! # Order of calls
//! Per run [`Loss::needs`]; on a resume [`Loss::restore`]. Per training step
//! [`Loss::before_step`] if the needs say so, [`Loss::separable`] and [`Loss::evaluate`] per
//! micro-batch, then [`Loss::end_step`]. Per validation the same without `end_step`. Per
//! checkpoint [`Loss::state`]. All calls come from one thread at a time.

mod batch;
mod gradients;

pub use crate::statistic::{Per, PerStatistic, Statistic};
pub use batch::{Batch, OwnedBatch, Role, RoleTotals, Sequence, Totals};
pub use gradients::{Gradients, TokenRule};

use crate::PluginError;

/// What a loss asks of the engine beside `logp`, which every batch has.
///
/// ```
/// use finetuned_plugin_api::loss::{Needs, Statistic};
///
/// let needs = Needs { reference_logp: true, ..Needs::of([Statistic::Entropy]) };
/// assert!(needs.asks(Statistic::Entropy) && !needs.asks(Statistic::Lse));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// Which statistics to compute; see [`Needs::of`].
    pub statistics: PerStatistic<bool>,
    /// Asks for `logp` under the reference policy, which is the policy that the run started
    /// from.
    pub reference_logp: bool,
    /// Puts the tokens of prompts into the batch too (all but the first of a document), with
    /// `completion` false. Without it a batch holds the trained tokens alone.
    pub prompt_logp: bool,
    /// Which sequences [`Loss::before_step`] sees before the step.
    pub before_step: BeforeStep,
    /// Names of numeric columns of the dataset. Each sequence carries its row's numbers in
    /// [`Sequence::columns`], in this order. A row without one of these columns, or with
    /// something else than a number in it, is an error of the dataset that names the line.
    pub columns: Vec<String>,
}

impl Needs {
    /// Asks for these statistics and nothing else.
    pub fn of(statistics: impl IntoIterator<Item = Statistic>) -> Needs {
        let mut needs = Needs::default();
        statistics.into_iter().for_each(|statistic| needs.statistics[statistic] = true);
        needs
    }

    /// Whether a batch for this loss holds the statistic. Always so for `logp`.
    pub fn asks(&self, statistic: Statistic) -> bool {
        statistic == Statistic::Logp || self.statistics[statistic]
    }

    /// Whether `logp` is the only token statistic that it reads.
    pub fn only_logp(&self) -> bool {
        !Statistic::ALL.into_iter().any(|statistic| {
            statistic != Statistic::Logp && statistic.per() == Per::Token && self.statistics[statistic]
        })
    }
}

/// The pass without gradient over the step's sequences that the engine makes before the first
/// micro-batch, if a loss asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BeforeStep {
    /// No pass.
    #[default]
    Nothing,
    /// A pass over the sequences of [`Role::KlCompletion`] alone (KTO).
    KlCompletions,
    /// A pass over every sequence of the step.
    Everything,
}

/// A training objective over token statistics.
///
/// Authors usually implement [`Formula`](crate::tape::Formula) instead, which derives the
/// gradients. Every formula is a loss.
pub trait Loss: Send {
    /// What the loss asks of the engine. Asked after creation; the answer must not change.
    fn needs(&self) -> Needs;

    /// Sees the step before its first micro-batch, if [`Needs::before_step`] asks for it. Called
    /// per training step and per validation. `step` holds the sequences asked for, over the
    /// whole step, with `logp` (and `reference_logp`) computed and every other statistic zero.
    /// What this returns is the [`Batch::context`] of each micro-batch of the step.
    ///
    /// # Errors
    /// Whatever keeps the loss from this; the run ends.
    fn before_step(&self, step: &Batch) -> Result<Vec<f64>, PluginError> {
        let _ = step;
        Ok(Vec::new())
    }

    /// Writes value, derivatives and metrics of one micro-batch into `out`, after
    /// [`Gradients::reset`]. A pure function: the same batch gives the same bits.
    ///
    /// # Errors
    /// A batch that does not fit the loss; the run ends.
    fn evaluate(&self, batch: &Batch, out: &mut Gradients) -> Result<(), PluginError>;

    /// The loss's rule, if its derivatives are known before the forward pass; see
    /// [`TokenRule`]. `totals` are those of the step.
    fn separable(&self, totals: &Totals) -> Option<TokenRule> {
        let _ = totals;
        None
    }

    /// Called once after each training step, with the step's loss and metrics. The only place
    /// where a loss may change its state.
    ///
    /// # Errors
    /// A state that cannot follow the step. The run ends; its last checkpoint is kept.
    fn end_step(&mut self, loss: f64, metrics: &[(String, f64)]) -> Result<(), PluginError> {
        let _ = (loss, metrics);
        Ok(())
    }

    /// The state to keep in a checkpoint; empty for a loss without state.
    ///
    /// # Errors
    /// A state that cannot be told. The checkpoint is then not written, because an empty state
    /// would resume as another run.
    fn state(&self) -> Result<Vec<u8>, PluginError> {
        Ok(Vec::new())
    }

    /// Takes back what [`Loss::state`] gave. Called on a resume, before the first step.
    ///
    /// # Errors
    /// Bytes that are not a state of this loss.
    fn restore(&mut self, state: &[u8]) -> Result<(), PluginError> {
        if state.is_empty() {
            return Ok(());
        }
        Err(PluginError::Failed("this loss keeps no state, but the checkpoint holds one".into()))
    }
}
