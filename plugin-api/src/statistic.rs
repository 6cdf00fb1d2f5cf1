//! The statistics that a loss reads and differentiates by, each declared once, here.
//!
//! A statistic is a number per trained token (or per sequence). The engine computes it from
//! the logits z of the next token and p = softmax(z), V being the size of the vocabulary and
//! y the token that follows. The loss answers with its derivative by the statistic, and the
//! engine turns that into a gradient of the logits:
//!
//! | statistic | formula | derivative by the logits | serves |
//! | --- | --- | --- | --- |
//! | `logp` | log p(y) | onehot(y) − p | every loss |
//! | `mean_logp` | (1/V) Σ log p | 1/V − p | label smoothing |
//! | `entropy` | H = −Σ p log p | −p (log p + H) | entropy bonus |
//! | `lse` | log Σ exp(z) | p | z-loss |
//! | `value` | the value head's output | (not from the logits) | reward models |
//!
//! All of them are in nats, but for `value`. To add a statistic, add a block to the
//! declaration below: [`Needs`](crate::loss::Needs), [`Batch`](crate::loss::Batch),
//! [`Gradients`](crate::loss::Gradients), [`TokenRule`](crate::loss::TokenRule), the tape and
//! the conformance kit index their arrays by it. The frozen tables of [`abi`](crate::abi) do
//! not grow; the compiler asks there what an older plugin gets in its place.

use std::ops::{Index, IndexMut};

/// What there is one number of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Per {
    /// Each trained token of the batch.
    Token,
    /// Each sequence of the batch.
    Sequence,
}

/// Declares the statistics: the enumeration, the list of all, and what each one is.
macro_rules! statistics {
    ($($(#[$doc:meta])* $variant:ident: $name:literal per $per:ident,)*) => {
        /// A statistic; see the [module](self) for the formulas.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Statistic {
            $($(#[$doc])* $variant,)*
        }

        impl Statistic {
            /// Every statistic, in the order of declaration.
            pub const ALL: [Statistic; [$($name),*].len()] = [$(Statistic::$variant),*];

            /// The name in messages and in the C header: `mean_logp`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Statistic::$variant => $name,)*
                }
            }

            /// Whether there is one number per token or one per sequence.
            pub const fn per(self) -> Per {
                match self {
                    $(Statistic::$variant => Per::$per,)*
                }
            }
        }
    };
}

// The order is the order in which `TokenRule::evaluate` adds its terms: it is part of the bits.
statistics! {
    /// The log-probability of the token. Every batch has it, whether asked for or not.
    Logp: "logp" per Token,
    /// The mean over the vocabulary of the log-probabilities.
    MeanLogp: "mean_logp" per Token,
    /// The entropy of the distribution.
    Entropy: "entropy" per Token,
    /// The log-sum-exp of the logits, after a soft cap if the model has one.
    Lse: "lse" per Token,
    /// One number per sequence, from the value head at the sequence's last token.
    ///
    /// A loss that asks for values, and for no other statistic or pass, gets nothing of the LM
    /// head: no logits are computed, `logp` is zeros, and a derivative by it is an error. A
    /// loss that reads both asks for another statistic as well.
    Value: "value" per Sequence,
}

/// One `T` per statistic, indexed by [`Statistic`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerStatistic<T>([T; Statistic::ALL.len()]);

impl<T> PerStatistic<T> {
    /// Makes the entry of each statistic.
    pub fn from_fn(make: impl FnMut(Statistic) -> T) -> PerStatistic<T> {
        PerStatistic(Statistic::ALL.map(make))
    }

    /// The entries, in the order of [`Statistic::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Statistic, &T)> {
        Statistic::ALL.into_iter().zip(&self.0)
    }

    /// The entries to change, in the order of [`Statistic::ALL`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Statistic, &mut T)> {
        Statistic::ALL.into_iter().zip(&mut self.0)
    }
}

impl<T> Index<Statistic> for PerStatistic<T> {
    type Output = T;

    fn index(&self, statistic: Statistic) -> &T {
        &self.0[statistic as usize]
    }
}

impl<T> IndexMut<Statistic> for PerStatistic<T> {
    fn index_mut(&mut self, statistic: Statistic) -> &mut T {
        &mut self.0[statistic as usize]
    }
}
