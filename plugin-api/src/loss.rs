//! A loss sees token statistics, never logits.
//!
//! For each counted token of a micro-batch the engine computes `logp`, the
//! log-probability of that token, and on request other statistics of the same
//! distribution. The loss returns its value and its derivative by each
//! statistic; the engine turns those into gradients inside the chunked
//! language-model head. Kilobytes cross, whatever the vocabulary:
//!
//! | statistic | derivative by the logits | serves |
//! | --- | --- | --- |
//! | `logp` of the token y | onehot(y) − p | every loss |
//! | `lse`, log-sum-exp | p | z-loss |
//! | `mean_logp` over the vocabulary | 1/V − p | label smoothing |
//! | `entropy` H | −p (log p + H) | entropy bonus |
//!
//! # Accumulation
//! A step may be cut into micro-batches in any way (pairs stay whole). Each
//! [`Batch`] carries the [`Totals`] of the whole step; a loss divides by those,
//! never by what it sees, so that contributions simply add: 1×8 = 8×1.
//! Metrics add in the same way.

use std::ops::Range;

use crate::PluginError;

/// What a loss asks of the engine beside `logp`, which is always there.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Needs {
    /// −Σ p log p over the vocabulary, in nats.
    pub entropy: bool,
    /// log Σ exp(logit).
    pub lse: bool,
    /// The mean over the vocabulary of log p.
    pub mean_logp: bool,
    /// `logp` under the reference policy: the policy that the run started from.
    pub reference_logp: bool,
    /// Count the tokens of prompts too (all but the first of a document), with
    /// `completion` false. Without it a prompt's tokens are not in the batch.
    pub prompt_logp: bool,
    /// One number for each sequence, from the value head at its last token.
    ///
    /// A loss that asks for values, and for no other statistic or pass, gets
    /// nothing of the language-model head: no logits are computed, `logp` is
    /// zeros, and a derivative by it is an error. One that reads both asks for
    /// another statistic as well.
    pub value: bool,
    /// Which sequences [`Loss::before_step`] wants to see before the step.
    pub before_step: BeforeStep,
    /// Names of numeric columns of the dataset. Each sequence carries its row's numbers in
    /// [`Sequence::columns`], in this order. A row without one of these columns, or with
    /// something else than a number in it, is an error of the dataset and names the line.
    #[serde(default)]
    pub columns: Vec<String>,
}

/// The pass without gradient over the whole step's sequences that the engine
/// makes before the first micro-batch, if a loss asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum BeforeStep {
    /// No pass.
    #[default]
    Nothing,
    /// Only sequences of [`Role::KlCompletion`] (KTO).
    KlCompletions,
    /// Every sequence of the step.
    Everything,
}

/// What a sequence is in its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
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

/// One sequence: a range of the batch's counted tokens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sequence {
    /// Into the batch's token slices. May be empty.
    pub tokens: Range<usize>,
    pub role: Role,
    /// Which pair it belongs to; the chosen and the rejected sequence of a pair
    /// carry the same number and lie in the same micro-batch.
    pub pair: Option<u32>,
    /// Whether the answer is a desirable one (KTO).
    pub label: Option<bool>,
    /// The row's `reward`, if the dataset has one.
    pub reward: Option<f64>,
    /// The row's numbers in the columns of [`Needs::columns`], in that order. Empty if the
    /// loss asks for none.
    pub columns: Vec<f64>,
}

/// How much of one role there is in a whole step.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize, serde::Deserialize)]
#[repr(C)]
pub struct RoleTotals {
    pub sequences: u64,
    /// Counted tokens of a weight above zero, prompts included where counted.
    pub tokens: u64,
    /// Sum of those tokens' weights.
    pub weight: f64,
    /// As `tokens`, completions only.
    pub completion_tokens: u64,
    /// As `weight`, completions only.
    pub completion_weight: f64,
}

/// What the whole accumulated optimizer step holds, whatever part of it a
/// micro-batch is.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize, serde::Deserialize)]
#[repr(C)]
pub struct Totals {
    /// By [`Role`], in the order of its number; read with [`Totals::role`].
    pub roles: [RoleTotals; 5],
    /// Pairs: chosen sequences that carry a pair number.
    pub pairs: u64,
    /// Sequences of [`Role::Completion`] labelled true, and labelled false.
    pub desirable: u64,
    pub undesirable: u64,
}

impl Totals {
    /// Of one micro-batch; a step's totals are the sum ([`Totals::add`]).
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

    pub fn role(&self, role: Role) -> &RoleTotals {
        &self.roles[role as usize]
    }

    /// Sequences that are trained on: all but [`Role::KlCompletion`].
    pub fn sequences(&self) -> u64 {
        self.trained().map(|role| role.sequences).sum()
    }

    /// Counted tokens of those sequences with a weight above zero.
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

/// The counted tokens of one micro-batch, borrowed from the engine.
///
/// Every token slice has [`Batch::len`] elements; `values` has one for each
/// sequence. What was not asked for in [`Needs`] is `None`.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Log-probability of each token, in nats.
    pub logp: &'a [f32],
    pub entropy: Option<&'a [f32]>,
    pub lse: Option<&'a [f32]>,
    pub mean_logp: Option<&'a [f32]>,
    pub reference_logp: Option<&'a [f32]>,
    /// One number for each sequence.
    pub values: Option<&'a [f32]>,
    /// How much each token counts, from the dataset; 1 unless it says otherwise. A loss
    /// multiplies the token's part by it, and divides by [`Totals`], which add it up. A token
    /// of weight 2 is that token twice; a token of weight 0 is masked, and the loss must not
    /// depend on it.
    pub weight: &'a [f32],
    /// Whether the token belongs to the answer; false for a prompt's.
    pub completion: &'a [bool],
    /// The token ids.
    pub token: &'a [u32],
    /// In order of their ranges, which do not overlap.
    pub sequences: &'a [Sequence],
    /// Of the whole accumulated step.
    pub totals: &'a Totals,
    /// What [`Loss::before_step`] returned for this step.
    pub context: &'a [f64],
}

impl<'a> Batch<'a> {
    /// Number of counted tokens.
    pub fn len(&self) -> usize {
        self.logp.len()
    }

    pub fn is_empty(&self) -> bool {
        self.logp.is_empty()
    }

    /// Pairs of sequence numbers, (chosen, rejected), in the order of the
    /// chosen ones.
    ///
    /// # Errors
    /// When a chosen or rejected sequence of this micro-batch has no partner in
    /// it, or a number is used twice.
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

    /// Checks that every slice has its length, that sequences lie inside, in
    /// order and apart, and that what `needs` asks for is there.
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
        length("weight", self.weight.len(), n)?;
        length("completion", self.completion.len(), n)?;
        length("token", self.token.len(), n)?;
        asked("entropy", self.entropy, needs.entropy, n)?;
        asked("lse", self.lse, needs.lse, n)?;
        asked("mean_logp", self.mean_logp, needs.mean_logp, n)?;
        asked("reference_logp", self.reference_logp, needs.reference_logp, n)?;
        asked("values", self.values, needs.value, self.sequences.len())?;
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
            if sequence.columns.len() != needs.columns.len() {
                return Err(match needs.columns.get(sequence.columns.len()) {
                    Some(name) => PluginError::Batch(format!(
                        "the batch lacks the column '{name}' of the dataset, which the loss asks for"
                    )),
                    None => PluginError::shape("batch.sequences.columns", needs.columns.len(), sequence.columns.len()),
                });
            }
        }
        Ok(())
    }
}

/// A batch that owns its slices: what tests, the conformance kit and the door
/// build. [`OwnedBatch::view`] borrows it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OwnedBatch {
    pub logp: Vec<f32>,
    pub entropy: Option<Vec<f32>>,
    pub lse: Option<Vec<f32>>,
    pub mean_logp: Option<Vec<f32>>,
    pub reference_logp: Option<Vec<f32>>,
    pub values: Option<Vec<f32>>,
    pub weight: Vec<f32>,
    pub completion: Vec<bool>,
    pub token: Vec<u32>,
    pub sequences: Vec<Sequence>,
    pub totals: Totals,
    pub context: Vec<f64>,
}

impl OwnedBatch {
    pub fn view(&self) -> Batch<'_> {
        Batch {
            logp: &self.logp,
            entropy: self.entropy.as_deref(),
            lse: self.lse.as_deref(),
            mean_logp: self.mean_logp.as_deref(),
            reference_logp: self.reference_logp.as_deref(),
            values: self.values.as_deref(),
            weight: &self.weight,
            completion: &self.completion,
            token: &self.token,
            sequences: &self.sequences,
            totals: &self.totals,
            context: &self.context,
        }
    }
}

/// What a loss writes: its contribution to the step's loss, and the derivative
/// by each statistic of each token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gradients {
    /// Contributions of a step's micro-batches add up to the step's loss.
    pub loss: f64,
    /// d loss / d logp, one for each counted token.
    pub dlogp: Vec<f32>,
    /// Present exactly where [`Needs`] asks for the statistic.
    pub dentropy: Option<Vec<f32>>,
    pub dlse: Option<Vec<f32>>,
    pub dmean_logp: Option<Vec<f32>>,
    /// d loss / d value, one for each sequence.
    pub dvalue: Option<Vec<f32>>,
    /// Named numbers for the report, divided by the step's totals so that they
    /// add up over micro-batches.
    pub metrics: Vec<(String, f64)>,
}

impl Gradients {
    /// Sized and zeroed for a batch; keeps the allocations of an earlier one.
    pub fn reset(&mut self, needs: &Needs, batch: &Batch) {
        fn zero(slot: &mut Option<Vec<f32>>, wanted: bool, n: usize) {
            match (wanted, slot.as_mut()) {
                (false, _) => *slot = None,
                (true, Some(values)) => fill(values, n),
                (true, None) => *slot = Some(vec![0.0; n]),
            }
        }
        fn fill(values: &mut Vec<f32>, n: usize) {
            values.clear();
            values.resize(n, 0.0);
        }
        let n = batch.len();
        self.loss = 0.0;
        self.metrics.clear();
        fill(&mut self.dlogp, n);
        zero(&mut self.dentropy, needs.entropy, n);
        zero(&mut self.dlse, needs.lse, n);
        zero(&mut self.dmean_logp, needs.mean_logp, n);
        zero(&mut self.dvalue, needs.value, batch.sequences.len());
    }

    /// Adds to a metric, or begins it.
    pub fn metric(&mut self, name: &str, value: f64) {
        match self.metrics.iter_mut().find(|(known, _)| known == name) {
            Some((_, sum)) => *sum += value,
            None => self.metrics.push((name.to_string(), value)),
        }
    }

    /// What the engine checks after each call of a plugin: the lengths are
    /// right and every number is finite.
    ///
    /// # Errors
    /// Names the slice, and the token for a number that is not finite.
    pub fn check(&self, needs: &Needs, batch: &Batch) -> Result<(), PluginError> {
        if !self.loss.is_finite() {
            return Err(PluginError::Batch(format!("the loss is {}", self.loss)));
        }
        let slices = [
            ("dlogp", Some(&self.dlogp), true, batch.len()),
            ("dentropy", self.dentropy.as_ref(), needs.entropy, batch.len()),
            ("dlse", self.dlse.as_ref(), needs.lse, batch.len()),
            ("dmean_logp", self.dmean_logp.as_ref(), needs.mean_logp, batch.len()),
            ("dvalue", self.dvalue.as_ref(), needs.value, batch.sequences.len()),
        ];
        for (name, slice, wanted, length) in slices {
            match slice {
                None if wanted => {
                    return Err(PluginError::shape(name, format!("{length} values"), "none"));
                }
                Some(slice) if wanted && slice.len() != length => {
                    return Err(PluginError::shape(name, format!("{length} values"), slice.len()));
                }
                Some(slice) if wanted => {
                    if let Some(at) = slice.iter().position(|value| !value.is_finite()) {
                        return Err(PluginError::Batch(format!("{name} of token {at} is {}", slice[at])));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The derivative of a loss that is known before the forward pass: the loss is
/// Σ weight · (logp·c₁ + mean_logp·c₂ + entropy·c₃ + lse·c₄) over all counted
/// tokens, with these constants of the step.
///
/// The engine may then fuse the head's forward and backward pass, reading the
/// logits once; it still calls [`Loss::evaluate`] for the value and the
/// metrics. Both must take the derivative from [`TokenRule::derivative`], so
/// that they agree to the bit.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize, serde::Deserialize)]
#[repr(C)]
pub struct TokenRule {
    pub logp: f64,
    pub mean_logp: f64,
    pub entropy: f64,
    pub lse: f64,
}

impl TokenRule {
    /// The derivative by one statistic of a token: its coefficient of the rule
    /// times the token's weight, rounded once.
    pub fn derivative(coefficient: f64, weight: f32) -> f32 {
        (coefficient * f64::from(weight)) as f32
    }

    /// Value and derivatives of this rule over a batch, into `out` (which it
    /// resets): what `evaluate` of a separable loss does.
    pub fn evaluate(&self, needs: &Needs, batch: &Batch, out: &mut Gradients) -> Result<(), PluginError> {
        batch.check(needs)?;
        out.reset(needs, batch);
        let mut loss = 0.0;
        let statistics = [
            (self.logp, Some(batch.logp), Some(&mut out.dlogp)),
            (self.mean_logp, batch.mean_logp, out.dmean_logp.as_mut()),
            (self.entropy, batch.entropy, out.dentropy.as_mut()),
            (self.lse, batch.lse, out.dlse.as_mut()),
        ];
        for (coefficient, statistic, derivative) in statistics {
            if coefficient == 0.0 {
                continue;
            }
            let (Some(statistic), Some(derivative)) = (statistic, derivative) else {
                return Err(PluginError::Batch("a token rule uses a statistic that its loss did not ask for".into()));
            };
            for ((x, d), weight) in statistic.iter().zip(derivative).zip(batch.weight) {
                // A masked token's statistic may be anything, infinite too.
                if *weight != 0.0 {
                    loss += coefficient * f64::from(*weight) * f64::from(*x);
                    *d = TokenRule::derivative(coefficient, *weight);
                }
            }
        }
        out.loss = loss;
        Ok(())
    }
}

/// A training objective over token statistics.
///
/// Authors usually implement [`Formula`](crate::tape::Formula) instead, which
/// derives the gradients; every formula is a loss.
pub trait Loss: Send {
    /// Asked once, after creation; must not change.
    fn needs(&self) -> Needs;

    /// Called once before each step (and each validation step) when
    /// [`Needs::before_step`] asks for it, with the log-probabilities of the
    /// sequences asked for, over the whole step and without gradient. What it
    /// returns is each micro-batch's [`Batch::context`].
    fn before_step(&self, step: &Batch) -> Result<Vec<f64>, PluginError> {
        let _ = step;
        Ok(Vec::new())
    }

    /// Writes value, derivatives and metrics of one micro-batch. Resets `out`
    /// first ([`Gradients::reset`]). A pure function: the same batch gives the
    /// same bits.
    fn evaluate(&self, batch: &Batch, out: &mut Gradients) -> Result<(), PluginError>;

    /// The loss's rule where its derivatives are known before the forward
    /// pass; see [`TokenRule`].
    fn separable(&self, totals: &Totals) -> Option<TokenRule> {
        let _ = totals;
        None
    }

    /// Called once after each training step with the step's sums: the only
    /// place where a loss may change its state.
    ///
    /// # Errors
    /// A state that cannot follow the step. The run ends; the last checkpoint is kept.
    fn end_step(&mut self, loss: f64, metrics: &[(String, f64)]) -> Result<(), PluginError> {
        let _ = (loss, metrics);
        Ok(())
    }

    /// State to keep in a checkpoint; empty for a loss without one.
    ///
    /// # Errors
    /// A state that cannot be told. The checkpoint is then not written: a checkpoint with an
    /// empty state would resume as another run.
    fn state(&self) -> Result<Vec<u8>, PluginError> {
        Ok(Vec::new())
    }

    /// Puts back what [`Loss::state`] gave.
    fn restore(&mut self, state: &[u8]) -> Result<(), PluginError> {
        if state.is_empty() {
            return Ok(());
        }
        Err(PluginError::Failed("this loss keeps no state, but the checkpoint holds one".into()))
    }
}
