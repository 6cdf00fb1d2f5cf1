//! The memory of a step: reserved before the first one, and half the micro-batch
//! if the device has less.

use finetuned_shaders::TensorError;

use super::Trainer;
use crate::error::EngineError;
use crate::model::decoder::Keep;

/// Bytes that a step allocates, by sequences per micro-batch: one entry per
/// size that halving the micro-batch can reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepBytes(Vec<(usize, u64)>);

impl StepBytes {
    /// For micro-batches of `largest` sequences, half of that, and so on to one.
    pub fn new(largest: usize, mut bytes: impl FnMut(usize) -> u64) -> StepBytes {
        StepBytes(StepBytes::sizes(largest).map(|micro| (micro, bytes(micro))).collect())
    }

    /// As [`StepBytes::new`], with a count that can fail.
    pub(crate) fn try_new(
        largest: usize,
        mut bytes: impl FnMut(usize) -> Result<u64, EngineError>,
    ) -> Result<StepBytes, EngineError> {
        let list = StepBytes::sizes(largest).map(|micro| Ok((micro, bytes(micro)?)));
        Ok(StepBytes(list.collect::<Result<_, EngineError>>()?))
    }

    fn sizes(largest: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(largest.max(1)), |micro| (*micro > 1).then(|| micro.div_ceil(2)))
    }

    /// Bytes for micro-batches of `micro` sequences; None if nobody counted. Between
    /// two known sizes the larger one counts. A resumed run may have begun with a
    /// larger micro-batch than this plan's: its bytes grow in proportion.
    pub fn at(&self, micro: usize) -> Option<u64> {
        let (largest, most) = *self.0.first()?;
        let known = self.0.iter().rev().find(|(known, _)| *known >= micro);
        Some(known.map_or(most / largest as u64 * micro as u64, |(_, bytes)| *bytes))
    }
}

impl Trainer {
    /// Reserves the memory for what steps make. Halves the micro-batch until it fits.
    /// Returns the sequences per micro-batch.
    ///
    /// # Errors
    /// A failing device. If even one sequence does not fit, the step itself is left to
    /// find the memory.
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

    /// Halves the micro-batch after memory ran short. The batch and its gradient stay
    /// what they are, because twice as many micro-batches are added up. Any other
    /// error is returned, and so is a single sequence that does not fit.
    pub(super) fn take_less(&mut self, error: EngineError) -> Result<(), EngineError> {
        self.halve(error)?;
        self.reserve_again()
    }

    fn halve(&mut self, error: EngineError) -> Result<(), EngineError> {
        let EngineError::Tensor(TensorError::Memory { .. }) = error else { return Err(error) };
        if self.options.micro_batch_size <= 1 {
            return Err(EngineError::StepTooLarge { reason: error.to_string(), remedy: self.remedy() });
        }
        self.options.micro_batch_size = self.options.micro_batch_size.div_ceil(2);
        self.ops.trim();
        Ok(())
    }

    /// What would make a step of single sequences smaller.
    fn remedy(&self) -> String {
        let setting = match self.options.keep() {
            Keep::Inputs if !self.ops.info().on_host => "set train.offload_activations = true, ",
            Keep::Inputs | Keep::InputsOnHost => "",
            _ => "set train.gradient_checkpointing = true, ",
        };
        format!("{setting}lower train.sequence_length, or end the programs beside it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_step_are_known_for_each_half() {
        let bytes = StepBytes::new(11, |micro| 10 * micro as u64);
        let known: Vec<usize> = bytes.0.iter().map(|(micro, _)| *micro).collect();
        assert_eq!(known, [11, 6, 3, 2, 1]);
        assert_eq!(bytes.at(6), Some(60));
        assert_eq!(bytes.at(5), Some(60), "the next larger");
        assert_eq!(bytes.at(22), Some(220), "in proportion");
        assert_eq!(StepBytes::default().at(1), None);
    }
}
