//! A loss against the built-in cross-entropy, steps of the two in turn.

use std::time::Instant;

use finetuned_data::{Examples, Row};
use finetuned_plugin_api::registry::Registry;

use super::{BenchOptions, LossReport, median};
use crate::error::EngineError;
use crate::plugins;
use crate::recipe::Recipe;
use crate::train::step::{StepOptions, Trainer};

/// What the trainers of both losses are made from.
pub(super) struct LossBench<'a> {
    pub registry: &'a Registry,
    pub recipe: &'a Recipe,
    pub step_options: StepOptions,
    pub options: &'a BenchOptions,
}

impl LossBench<'_> {
    /// Steps with the cross-entropy and with the loss in turn, so that what else
    /// the machine does meets both.
    pub fn compare(
        &self,
        name: &str,
        trainer: Trainer,
        examples: &Examples,
        rows: &[Row],
    ) -> Result<LossReport, EngineError> {
        let mut recipe = self.recipe.clone();
        recipe.loss.name = name.to_string();
        let used = plugins::used::used(&recipe, self.registry, &self.options.plugins)?;
        let (mut ops, mut model) = trainer.into_model();
        let mut times: [Vec<f64>; 2] = Default::default();
        for _ in 0..self.options.steps.max(1) {
            for (name, times) in ["cross-entropy", name].into_iter().zip(&mut times) {
                let objective = self.registry.objective(name, &serde_json::Map::new())?;
                let optimizer = plugins::optimizer(self.recipe, self.registry)?;
                let mut trainer = Trainer::new(ops, model, objective, optimizer, self.step_options, true)?;
                trainer.check_data(examples)?;
                // The first step of a trainer makes what later ones reuse.
                trainer.step(examples, rows, 1, 1e-5, &mut |_, _| true)?;
                let started = Instant::now();
                trainer.step(examples, rows, 2, 1e-5, &mut |_, _| true)?;
                times.push(started.elapsed().as_secs_f64());
                (ops, model) = trainer.into_model();
            }
        }
        let [cross_entropy, loss] = times;
        let ratios = loss.iter().zip(&cross_entropy).map(|(loss, cross_entropy)| loss / cross_entropy).collect();
        Ok(LossReport {
            name: name.to_string(),
            origin: used.first().map_or_else(String::new, |plugin| plugin.origin.clone()),
            turns: loss.len(),
            ratio: median(ratios),
            seconds_per_step: median(loss),
            cross_entropy_seconds_per_step: median(cross_entropy),
        })
    }
}
