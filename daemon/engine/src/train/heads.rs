//! Which heads an objective reads, and which rows of a micro-batch each head reads:
//! the LM head those that predict a listed token, the value head each document's last.

use finetuned_plugin_api::loss::{BeforeStep, Statistic};
use finetuned_plugin_api::registry::Objective;
use finetuned_shaders::{Device, Tensor, TensorError};

use super::micro_batch::MicroBatch;
use crate::error::EngineError;

/// Which heads an objective reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Log-probabilities and the other token statistics.
    pub language: bool,
    /// One number per sequence.
    pub value: bool,
}

impl Heads {
    /// What a loss over token statistics reads.
    pub const LANGUAGE: Heads = Heads { language: true, value: false };

    /// A loss that asks for values, and neither for a token statistic nor for a
    /// pass before the step, reads the value head alone
    /// ([`Statistic::Value`]).
    pub fn of(objective: &Objective) -> Heads {
        let needs = objective.loss().needs();
        let value = needs.asks(Statistic::Value);
        let statistics = !needs.only_logp() || needs.reference_logp || needs.prompt_logp;
        let before = needs.before_step != BeforeStep::Nothing;
        Heads {
            language: !value || statistics || before,
            value: value || objective.alignment_needs().is_some_and(|a| a.value_head),
        }
    }

    /// Rows of the stream that the heads read: the language-model head's, then
    /// the value head's.
    ///
    /// # Errors
    /// A sequence without tokens, which has no last one.
    pub fn rows(&self, micro: &MicroBatch) -> Result<Vec<u32>, EngineError> {
        if self.value && micro.last.len() != micro.sequences.len() {
            return Err(EngineError::EmptySequence);
        }
        let language = if self.language { &micro.rows[..] } else { &[] };
        let value = if self.value { &micro.last[..] } else { &[] };
        Ok([language, value].concat())
    }

    /// Cuts the final norm's output at [`Heads::rows`] into what each head
    /// reads. Copies only if there are two.
    ///
    /// # Errors
    /// No memory.
    pub fn cut(&self, ops: &Device, micro: &MicroBatch, h: &Tensor) -> Result<HeadInputs, TensorError> {
        let listed = if self.language { micro.rows.len() } else { 0 };
        let part = |rows: std::ops::Range<usize>| {
            let rows: Vec<u32> = rows.map(|row| row as u32).collect();
            ops.gather_rows(h, &rows)
        };
        let (language, value) = match (self.language, self.value) {
            (true, true) => (Some(part(0..listed)?), Some(part(listed..h.rows())?)),
            (true, false) => (Some(h.clone()), None),
            (false, true) => (None, Some(h.clone())),
            (false, false) => (None, None),
        };
        Ok(HeadInputs { language, value })
    }
}

/// What each head reads of the final norm's output, or its gradient.
pub struct HeadInputs {
    /// `[M, C]`.
    pub language: Option<Tensor>,
    /// `[D, C]`.
    pub value: Option<Tensor>,
}

impl HeadInputs {
    /// Puts the gradients of both parts together again.
    ///
    /// # Errors
    /// Neither part is there; no memory.
    pub fn join(self, ops: &Device) -> Result<Tensor, TensorError> {
        match (self.language, self.value) {
            (Some(language), Some(value)) => {
                let (m, d) = (language.rows(), value.rows());
                let places = |rows: std::ops::Range<usize>| rows.map(|row| row as u32).collect::<Vec<u32>>();
                let mut all = ops.scatter_rows(m + d, &places(0..m), &language)?;
                let value = ops.scatter_rows(m + d, &places(m..m + d), &value)?;
                ops.add_scaled(&mut all, &value, 1.0)?;
                Ok(all)
            }
            (Some(part), None) | (None, Some(part)) => Ok(part),
            (None, None) => Err(TensorError::Shape {
                op: "heads",
                expected: "the gradient of a head's input".into(),
                got: "none".into(),
            }),
        }
    }
}
