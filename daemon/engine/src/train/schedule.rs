//! Learning rate by step.

use crate::recipe::{Schedule, TrainRecipe};

/// Steps of warm-up of a run of `total` steps.
pub fn warmup_steps(recipe: &TrainRecipe, total: usize) -> usize {
    recipe.warmup_steps.unwrap_or((recipe.warmup_ratio * total as f64).floor() as usize).min(total)
}

/// The rate of step `step` (from 1) of `total`: a linear rise over the warm-up,
/// `peak · step / (warmup + 1)`, then constant, a line to zero or a half cosine
/// to zero, reached one step after the last so that no step is wasted.
pub fn learning_rate(schedule: Schedule, peak: f64, warmup: usize, step: usize, total: usize) -> f64 {
    if step <= warmup {
        return peak * step as f64 / (warmup + 1) as f64;
    }
    let span = total.saturating_sub(warmup).max(1) as f64;
    let done = (step - warmup - 1) as f64 / span;
    match schedule {
        Schedule::Constant => peak,
        Schedule::Linear => peak * (1.0 - done).max(0.0),
        Schedule::Cosine => peak * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warmup_acts_under_every_schedule() {
        for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine] {
            let rate = |step| learning_rate(schedule, 1.0, 4, step, 20);
            assert!((rate(1) - 0.2).abs() < 1e-12 && (rate(4) - 0.8).abs() < 1e-12);
            assert_eq!(rate(5), 1.0, "the first step after the warm-up is at the peak");
            assert!((2..=4).all(|s| rate(s) > rate(s - 1)));
            assert!((6..=20).all(|s| rate(s) <= rate(s - 1)) && rate(20) > 0.0);
        }
    }

    #[test]
    fn the_shapes_are_what_they_are_called() {
        assert_eq!(learning_rate(Schedule::Constant, 3.0, 0, 9, 10), 3.0);
        assert!((learning_rate(Schedule::Linear, 1.0, 0, 6, 10) - 0.5).abs() < 1e-12);
        assert!((learning_rate(Schedule::Cosine, 1.0, 0, 6, 10) - 0.5).abs() < 1e-12);
        let warm = TrainRecipe { warmup_ratio: 0.1, ..TrainRecipe::default() };
        assert_eq!((warmup_steps(&warm, 99), warmup_steps(&warm, 5)), (9, 0));
        let fixed = TrainRecipe { warmup_steps: Some(7), ..warm };
        assert_eq!((warmup_steps(&fixed, 99), warmup_steps(&fixed, 5)), (7, 5));
    }
}
