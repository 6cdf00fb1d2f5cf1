//! A loss as its formula alone.

use super::{Tape, TapeBatch, V};
use crate::PluginError;
use crate::loss::{Batch, Gradients, Loss, Needs, Per, TokenRule, Totals};

/// A loss as its formula; the tape does the rest. Every formula is a
/// [`Loss`], whose methods of the same names say more.
pub trait Formula: Send {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// This micro-batch's part of the step's loss, one number.
    fn loss<'t>(&self, batch: &TapeBatch<'t>) -> Result<V<'t>, PluginError>;

    /// See [`Loss::before_step`].
    fn before_step(&self, step: &Batch) -> Result<Vec<f64>, PluginError> {
        let _ = step;
        Ok(Vec::new())
    }

    /// See [`Loss::end_step`].
    fn end_step(&mut self, loss: f64, metrics: &[(String, f64)]) -> Result<(), PluginError> {
        let _ = (loss, metrics);
        Ok(())
    }

    /// See [`Loss::state`].
    fn state(&self) -> Result<Vec<u8>, PluginError> {
        Ok(Vec::new())
    }

    /// See [`Loss::restore`].
    fn restore(&mut self, state: &[u8]) -> Result<(), PluginError> {
        if state.is_empty() {
            return Ok(());
        }
        Err(PluginError::Failed("this loss keeps no state, but the checkpoint holds one".into()))
    }
}

impl<F: Formula> Loss for F {
    fn needs(&self) -> Needs {
        Formula::needs(self)
    }

    fn before_step(&self, step: &Batch) -> Result<Vec<f64>, PluginError> {
        Formula::before_step(self, step)
    }

    fn evaluate(&self, batch: &Batch, out: &mut Gradients) -> Result<(), PluginError> {
        let needs = Formula::needs(self);
        out.reset(&needs, batch)?;
        let tape = Tape::default();
        let recorded = TapeBatch::new(&tape, *batch, &needs.columns);
        let loss = self.loss(&recorded)?;
        let length = tape.nodes.borrow()[loss.id].value.len();
        if length != 1 {
            return Err(PluginError::shape("the formula's result", "one number", format!("{length} numbers")));
        }
        out.loss = loss.value();
        let adjoint = tape.backward(loss.id);
        for (statistic, leaf) in recorded.leaves().iter() {
            let adjoint = leaf.and_then(|leaf| adjoint.get(leaf.id)).filter(|adjoint| !adjoint.is_empty());
            let Some(adjoint) = adjoint else { continue };
            for (i, (into, d)) in out.derivatives[statistic].iter_mut().zip(adjoint).enumerate() {
                let masked = statistic.per() == Per::Token && batch.weight[i] == 0.0;
                *into = if masked { 0.0 } else { *d as f32 };
            }
        }
        out.metrics = recorded.metrics.take();
        Ok(())
    }

    fn separable(&self, _: &Totals) -> Option<TokenRule> {
        None
    }

    fn end_step(&mut self, loss: f64, metrics: &[(String, f64)]) -> Result<(), PluginError> {
        Formula::end_step(self, loss, metrics)
    }

    fn state(&self) -> Result<Vec<u8>, PluginError> {
        Formula::state(self)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), PluginError> {
        Formula::restore(self, state)
    }
}
