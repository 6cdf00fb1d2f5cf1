//! An alignment method: what data it needs, which policies, and its objective.
//!
//! The engine owns the rest: reference log-probabilities (under an adapter the
//! same weights with the adapter off or with its frozen starting copy),
//! batching that keeps pairs together, the value head, and its saving.
//!
//! Methods that generate while they train (rollouts, rewards, advantages) will
//! come as a named interface beside this one, frozen on its own: this one never
//! grows. [`DataKind::Prompts`] is reserved for them.

use crate::loss::Loss;

/// What the rows of a dataset hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[repr(u32)]
pub enum DataKind {
    /// Conversations or text to imitate.
    Supervised = 0,
    /// `prompt`, `chosen`, `rejected`.
    Pairs = 1,
    /// `prompt`, `completion`, `label` (true or false).
    Labelled = 2,
    /// `prompt`, `completion`, `reward` (a number).
    Rewards = 3,
    /// `prompt` alone; for online methods.
    Prompts = 4,
}

/// What a method asks of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AlignmentNeeds {
    pub data: DataKind,
    /// The policy that the run starts from, kept to compare with.
    pub reference: bool,
    /// A linear head of one output on the last hidden state, trained and saved
    /// beside the adapter; the objective then asks for `value`.
    pub value_head: bool,
    /// A mismatched completion for each row, of
    /// [`Role::KlCompletion`](crate::loss::Role::KlCompletion): from the row, or
    /// the next row's completion within the batch.
    pub kl_completions: bool,
}

/// A way to train on preferences or rewards.
pub trait Alignment: Send {
    fn needs(&self) -> AlignmentNeeds;
    /// What is minimised.
    fn objective(&self) -> &dyn Loss;
    /// The same object, to end a step or to restore state.
    fn objective_mut(&mut self) -> &mut dyn Loss;
}

/// A method that is its declaration and its loss, and nothing else; most are.
pub struct Declared<L> {
    pub needs: AlignmentNeeds,
    pub objective: L,
}

impl<L: Loss> Alignment for Declared<L> {
    fn needs(&self) -> AlignmentNeeds {
        self.needs
    }

    fn objective(&self) -> &dyn Loss {
        &self.objective
    }

    fn objective_mut(&mut self) -> &mut dyn Loss {
        &mut self.objective
    }
}

impl AlignmentNeeds {
    /// That kind of data, and nothing else.
    pub const fn only(data: DataKind) -> AlignmentNeeds {
        AlignmentNeeds { data, reference: false, value_head: false, kl_completions: false }
    }
}
