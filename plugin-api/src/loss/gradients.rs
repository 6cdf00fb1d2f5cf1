//! What a loss returns: its value, its derivatives, and its rule if it is linear.

use super::{Batch, Needs, Per, PerStatistic, Statistic};
use crate::PluginError;

/// What a loss writes: its part of the step's loss, and the derivative by each statistic.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gradients {
    /// The parts of a step's micro-batches add up to the step's loss.
    pub loss: f64,
    /// d loss / d statistic: one number per token, or per sequence for
    /// [`Statistic::Value`]. Empty for a statistic that the loss does not ask for.
    pub derivatives: PerStatistic<Vec<f32>>,
    /// Named numbers for the report. Divide them by the step's totals, so that they add up over
    /// micro-batches.
    pub metrics: Vec<(String, f64)>,
}

impl Gradients {
    /// Checks the batch ([`Batch::check`]), then sizes and zeroes this for it. Keeps the
    /// allocations of an earlier batch.
    ///
    /// # Errors
    /// Those of [`Batch::check`].
    pub fn reset(&mut self, needs: &Needs, batch: &Batch) -> Result<(), PluginError> {
        batch.check(needs)?;
        self.loss = 0.0;
        self.metrics.clear();
        for (statistic, derivative) in self.derivatives.iter_mut() {
            derivative.clear();
            derivative.resize(if needs.asks(statistic) { batch.count(statistic.per()) } else { 0 }, 0.0);
        }
        Ok(())
    }

    /// Adds to a metric, or begins it.
    pub fn metric(&mut self, name: &str, value: f64) {
        match self.metrics.iter_mut().find(|(known, _)| known == name) {
            Some((_, sum)) => *sum += value,
            None => self.metrics.push((name.to_string(), value)),
        }
    }

    /// What the engine checks after each call of a plugin: every number is finite, and each
    /// derivative that was asked for has one number per token or sequence.
    ///
    /// # Errors
    /// Names the derivative, and the token or sequence of a number that is not finite.
    pub fn check(&self, needs: &Needs, batch: &Batch) -> Result<(), PluginError> {
        if !self.loss.is_finite() {
            return Err(PluginError::Batch(format!("the loss is {}", self.loss)));
        }
        for (statistic, derivative) in self.derivatives.iter().filter(|(statistic, _)| needs.asks(*statistic)) {
            let (name, length) = (statistic.name(), batch.count(statistic.per()));
            if derivative.len() != length {
                let expected = format!("{length} values");
                return Err(PluginError::shape(&format!("d{name}"), expected, derivative.len()));
            }
            if let Some(at) = derivative.iter().position(|value| !value.is_finite()) {
                let of = match statistic.per() {
                    Per::Token => "token",
                    Per::Sequence => "sequence",
                };
                return Err(PluginError::Batch(format!("d{name} of {of} {at} is {}", derivative[at])));
            }
        }
        Ok(())
    }
}

/// The derivative of a loss that is linear in its token statistics, so that it is known before
/// the forward pass: the loss is Σ weight · Σ coefficient · statistic over the tokens of the
/// batch, with coefficients that are constants of the step.
///
/// The engine can then compute the LM head forward and backward in one pass. It still calls
/// [`Loss::evaluate`](super::Loss::evaluate) for the value and the metrics. Both take the
/// derivative from [`TokenRule::derivative`], so that they agree to the bit.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TokenRule {
    /// The coefficient of each token statistic; 0 for [`Statistic::Value`], which is not one.
    pub coefficients: PerStatistic<f64>,
}

impl TokenRule {
    /// A rule with these coefficients, and 0 for every other statistic.
    pub fn of(coefficients: impl IntoIterator<Item = (Statistic, f64)>) -> TokenRule {
        let mut rule = TokenRule::default();
        coefficients.into_iter().for_each(|(statistic, coefficient)| rule.coefficients[statistic] = coefficient);
        rule
    }

    /// The derivative by one statistic of a token: its coefficient times the token's weight,
    /// rounded once.
    pub fn derivative(coefficient: f64, weight: f32) -> f32 {
        (coefficient * f64::from(weight)) as f32
    }

    /// Writes value and derivatives of this rule over a batch into `out`, which it resets: what
    /// `evaluate` of a separable loss does.
    ///
    /// # Errors
    /// A batch that does not fit, or a coefficient of a statistic that `needs` does not ask for.
    pub fn evaluate(&self, needs: &Needs, batch: &Batch, out: &mut Gradients) -> Result<(), PluginError> {
        out.reset(needs, batch)?;
        let mut loss = 0.0;
        for (statistic, coefficient) in self.coefficients.iter().filter(|(_, coefficient)| **coefficient != 0.0) {
            if !needs.asks(statistic) || statistic.per() != Per::Token {
                return Err(PluginError::Batch("a token rule uses a statistic that its loss did not ask for".into()));
            }
            let derivative = &mut out.derivatives[statistic];
            for ((x, d), weight) in batch.statistic(statistic)?.iter().zip(derivative).zip(batch.weight) {
                // A masked token's statistic may be anything, infinite too.
                if *weight != 0.0 {
                    loss += coefficient * f64::from(*weight) * f64::from(*x);
                    *d = TokenRule::derivative(*coefficient, *weight);
                }
            }
        }
        out.loss = loss;
        Ok(())
    }
}
