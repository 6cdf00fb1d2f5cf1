//! What a loss sees: the tokens of one micro-batch, their sequences, and the step's totals.

use std::ops::Range;

use super::{Needs, Per, PerStatistic, Statistic};
use crate::PluginError;

/// What a sequence is in its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u32)]
pub enum Role {
    /// A supervised row.
    #[default]
    Plain = 0,
    /// The preferred answer of a pair.
    Chosen = 1,
    /// The other answer of a pair.
    Rejected = 2,
    /// A single answer with a label or a reward (KTO).
    Completion = 3,
    /// A mismatched answer that only estimates KTO's KL; never trained on.
    KlCompletion = 4,
}

impl Role {
    /// Every role, in the order of its number.
    pub const ALL: [Role; 5] = [Role::Plain, Role::Chosen, Role::Rejected, Role::Completion, Role::KlCompletion];
}

/// One sequence: a range of the batch's tokens, and what the dataset says of its row.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sequence {
    /// The range in the batch's token slices. May be empty.
    pub tokens: Range<usize>,
    /// What the sequence is.
    pub role: Role,
    /// The number of its pair. The chosen and the rejected sequence of a pair have the same
    /// number, and are in the same micro-batch.
    pub pair: Option<u32>,
    /// Whether the answer is a desirable one (KTO).
    pub label: Option<bool>,
    /// The row's `reward`, if the dataset has one.
    pub reward: Option<f64>,
    /// The row's numbers in the columns of [`Needs::columns`], in that order. Empty if the loss
    /// asks for none.
    pub columns: Vec<f64>,
}

/// How much of one role there is in a whole step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RoleTotals {
    /// Number of sequences.
    pub sequences: u64,
    /// Number of tokens with a weight above zero; prompts included if the loss asks for them.
    pub tokens: u64,
    /// Sum of those tokens' weights.
    pub weight: f64,
    /// As `tokens`, completions only.
    pub completion_tokens: u64,
    /// As `weight`, completions only.
    pub completion_weight: f64,
}

/// What the whole optimizer step holds, whatever part of it a micro-batch is: the numbers to
/// divide by.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Totals {
    /// By [`Role`], in the order of its number; read with [`Totals::role`].
    pub roles: [RoleTotals; 5],
    /// Number of pairs: chosen sequences that carry a pair number.
    pub pairs: u64,
    /// Number of sequences of [`Role::Completion`] labelled true.
    pub desirable: u64,
    /// Number of sequences of [`Role::Completion`] labelled false.
    pub undesirable: u64,
}

impl Totals {
    /// The totals of one micro-batch. The totals of a step are their sum ([`Totals::add`]).
    pub fn of(sequences: &[Sequence], weight: &[f32], completion: &[bool]) -> Totals {
        let mut totals = Totals::default();
        for sequence in sequences {
            let role = &mut totals.roles[sequence.role as usize];
            role.sequences += 1;
            for i in sequence.tokens.clone() {
                let (Some(weight), Some(completion)) = (weight.get(i), completion.get(i)) else {
                    continue;
                };
                if *weight <= 0.0 {
                    continue;
                }
                role.tokens += 1;
                role.weight += f64::from(*weight);
                if *completion {
                    role.completion_tokens += 1;
                    role.completion_weight += f64::from(*weight);
                }
            }
            match sequence.role {
                Role::Chosen if sequence.pair.is_some() => totals.pairs += 1,
                Role::Completion if sequence.label == Some(true) => totals.desirable += 1,
                Role::Completion if sequence.label == Some(false) => totals.undesirable += 1,
                _ => {}
            }
        }
        totals
    }

    /// Adds another micro-batch of the same step.
    pub fn add(&mut self, other: &Totals) {
        for (mine, theirs) in self.roles.iter_mut().zip(&other.roles) {
            mine.sequences += theirs.sequences;
            mine.tokens += theirs.tokens;
            mine.weight += theirs.weight;
            mine.completion_tokens += theirs.completion_tokens;
            mine.completion_weight += theirs.completion_weight;
        }
        self.pairs += other.pairs;
        self.desirable += other.desirable;
        self.undesirable += other.undesirable;
    }

    /// The totals of one role.
    pub fn role(&self, role: Role) -> &RoleTotals {
        &self.roles[role as usize]
    }

    /// Number of sequences that are trained on: all but [`Role::KlCompletion`].
    pub fn sequences(&self) -> u64 {
        self.trained().map(|role| role.sequences).sum()
    }

    /// Number of tokens of those sequences with a weight above zero.
    pub fn tokens(&self) -> u64 {
        self.trained().map(|role| role.tokens).sum()
    }

    /// Sum of the weights of those tokens.
    pub fn weight(&self) -> f64 {
        self.trained().map(|role| role.weight).sum()
    }

    fn trained(&self) -> impl Iterator<Item = &RoleTotals> {
        self.roles[..Role::KlCompletion as usize].iter()
    }
}

/// The tokens of one micro-batch, borrowed from the engine for the time of a call.
///
/// The tokens of a batch are its trained tokens, and with [`Needs::prompt_logp`] the prompts'
/// too. Every slice of tokens has [`Batch::len`] elements.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// One number per token, or per sequence for [`Statistic::Value`]. `None` for a statistic
    /// that [`Needs`] does not ask for. Read with [`Batch::logp`] and [`Batch::statistic`].
    pub statistics: PerStatistic<Option<&'a [f32]>>,
    /// The log-probability of each token under the reference policy; `None` if not asked for.
    pub reference_logp: Option<&'a [f32]>,
    /// How much each token counts, from the dataset; 1 unless it says otherwise. A loss
    /// multiplies the token's part by it, and divides by [`Totals`], which add it up. A token
    /// of weight 2 is that token twice. A token of weight 0 is masked, and the loss must not
    /// depend on it.
    pub weight: &'a [f32],
    /// Whether the token belongs to the answer; false for a token of a prompt.
    pub completion: &'a [bool],
    /// The token ids.
    pub token: &'a [u32],
    /// In order of their ranges, which do not overlap.
    pub sequences: &'a [Sequence],
    /// The totals of the whole step.
    pub totals: &'a Totals,
    /// What [`Loss::before_step`](super::Loss::before_step) returned for this step.
    pub context: &'a [f64],
}

impl<'a> Batch<'a> {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.weight.len()
    }

    /// Whether the batch holds no token.
    pub fn is_empty(&self) -> bool {
        self.weight.is_empty()
    }

    /// Number of tokens or of sequences.
    pub fn count(&self, per: Per) -> usize {
        match per {
            Per::Token => self.len(),
            Per::Sequence => self.sequences.len(),
        }
    }

    /// The log-probability of each token, in nats.
    pub fn logp(&self) -> &'a [f32] {
        self.statistics[Statistic::Logp].unwrap_or_default()
    }

    /// A statistic of each token (or sequence).
    ///
    /// # Errors
    /// A statistic that the loss does not ask for in its [`Needs`].
    pub fn statistic(&self, statistic: Statistic) -> Result<&'a [f32], PluginError> {
        self.statistics[statistic]
            .ok_or_else(|| PluginError::Batch(format!("the loss uses {} but does not ask for it", statistic.name())))
    }

    /// Pairs of places in [`Batch::sequences`], (chosen, rejected), in the order of the chosen
    /// ones.
    ///
    /// # Errors
    /// A chosen or rejected sequence without its partner in this micro-batch, or a pair number
    /// that is used twice.
    pub fn pairs(&self) -> Result<Vec<(usize, usize)>, PluginError> {
        let mut rejected = std::collections::HashMap::new();
        for (at, sequence) in self.sequences.iter().enumerate() {
            if let (Role::Rejected, Some(pair)) = (sequence.role, sequence.pair)
                && rejected.insert(pair, at).is_some()
            {
                return Err(PluginError::Batch(format!("pair {pair} has two rejected sequences")));
            }
        }
        let mut pairs = Vec::with_capacity(rejected.len());
        for (at, sequence) in self.sequences.iter().enumerate() {
            if let (Role::Chosen, Some(pair)) = (sequence.role, sequence.pair) {
                let Some(partner) = rejected.remove(&pair) else {
                    return Err(PluginError::Batch(format!(
                        "pair {pair} has no rejected sequence of its own in its micro-batch"
                    )));
                };
                pairs.push((at, partner));
            }
        }
        match rejected.keys().min() {
            Some(pair) => {
                Err(PluginError::Batch(format!("pair {pair} has no chosen sequence of its own in its micro-batch")))
            }
            None => Ok(pairs),
        }
    }

    /// Checks that every slice has its length, that sequences are inside the batch, in order
    /// and without overlap, and that what `needs` asks for is there.
    ///
    /// # Errors
    /// The first slice, sequence or column that does not fit.
    pub fn check(&self, needs: &Needs) -> Result<(), PluginError> {
        let n = self.len();
        let length = |name: &str, got: usize, expected: usize| {
            if got == expected { Ok(()) } else { Err(PluginError::shape(&format!("batch.{name}"), expected, got)) }
        };
        let asked = |name: &str, slice: Option<&[f32]>, asked: bool, expected: usize| match slice {
            Some(slice) => length(name, slice.len(), expected),
            None if asked => Err(PluginError::Batch(format!("the batch lacks {name}, which the loss asks for"))),
            None => Ok(()),
        };
        length("completion", self.completion.len(), n)?;
        length("token", self.token.len(), n)?;
        for (statistic, slice) in self.statistics.iter() {
            asked(statistic.name(), *slice, needs.asks(statistic), self.count(statistic.per()))?;
        }
        asked("reference_logp", self.reference_logp, needs.reference_logp, n)?;
        let mut end = 0;
        for sequence in self.sequences {
            if sequence.tokens.start < end || sequence.tokens.end < sequence.tokens.start || sequence.tokens.end > n {
                return Err(PluginError::shape(
                    "batch.sequences",
                    format!("ranges in order within {end}..{n}"),
                    format!("{:?}", sequence.tokens),
                ));
            }
            end = sequence.tokens.end;
            check_columns(needs, sequence)?;
        }
        Ok(())
    }
}

fn check_columns(needs: &Needs, sequence: &Sequence) -> Result<(), PluginError> {
    let (asked, got) = (needs.columns.len(), sequence.columns.len());
    if got == asked {
        return Ok(());
    }
    Err(match needs.columns.get(got) {
        Some(name) => {
            PluginError::Batch(format!("the batch lacks the column '{name}' of the dataset, which the loss asks for"))
        }
        None => PluginError::shape("batch.sequences.columns", asked, got),
    })
}

/// A batch that owns its slices: what tests and the conformance kit build.
/// [`OwnedBatch::view`] borrows it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OwnedBatch {
    /// See [`Batch::statistics`].
    pub statistics: PerStatistic<Option<Vec<f32>>>,
    /// See [`Batch::reference_logp`].
    pub reference_logp: Option<Vec<f32>>,
    /// See [`Batch::weight`].
    pub weight: Vec<f32>,
    /// See [`Batch::completion`].
    pub completion: Vec<bool>,
    /// See [`Batch::token`].
    pub token: Vec<u32>,
    /// See [`Batch::sequences`].
    pub sequences: Vec<Sequence>,
    /// See [`Batch::totals`].
    pub totals: Totals,
    /// See [`Batch::context`].
    pub context: Vec<f64>,
}

impl OwnedBatch {
    /// The batch as a loss sees it.
    pub fn view(&self) -> Batch<'_> {
        Batch {
            statistics: PerStatistic::from_fn(|statistic| self.statistics[statistic].as_deref()),
            reference_logp: self.reference_logp.as_deref(),
            weight: &self.weight,
            completion: &self.completion,
            token: &self.token,
            sequences: &self.sequences,
            totals: &self.totals,
            context: &self.context,
        }
    }

    /// The log-probability of each token, to change; empty if it was not set.
    pub fn logp_mut(&mut self) -> &mut Vec<f32> {
        self.statistics[Statistic::Logp].get_or_insert_default()
    }
}
