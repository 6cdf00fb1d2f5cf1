//! A loss as its formula alone.

use super::{Statistic, Tape, TapeBatch, V};
use crate::PluginError;
use crate::loss::{Batch, Gradients, Loss, Needs, TokenRule, Totals};

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
        batch.check(&needs)?;
        out.reset(&needs, batch);
        let tape = Tape::default();
        let recorded = TapeBatch::new(&tape, *batch, &needs.columns);
        let loss = self.loss(&recorded)?;
        let length = tape.nodes.borrow()[loss.id].value.len();
        if length != 1 {
            return Err(PluginError::shape("the formula's result", "one number", format!("{length} numbers")));
        }
        out.loss = loss.value();
        let adjoint = tape.backward(loss.id);
        for (statistic, leaf) in recorded.leaves.borrow().iter() {
            let Some(adjoint) = adjoint.get(leaf.id).filter(|adjoint| !adjoint.is_empty()) else {
                continue;
            };
            let into = match statistic {
                Statistic::Logp => Some(&mut out.dlogp),
                Statistic::Entropy => out.dentropy.as_mut(),
                Statistic::Lse => out.dlse.as_mut(),
                Statistic::MeanLogp => out.dmean_logp.as_mut(),
                Statistic::Value => out.dvalue.as_mut(),
            };
            let Some(into) = into else { continue };
            let per_token = *statistic != Statistic::Value;
            for (i, (into, d)) in into.iter_mut().zip(adjoint).enumerate() {
                let masked = per_token && batch.weight[i] == 0.0;
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
