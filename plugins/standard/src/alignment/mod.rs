//! Alignment methods: training on preferences.

pub mod cpo;
pub mod dpo;
pub mod kto;
pub mod orpo;
pub mod reward_model;
pub mod simpo;
pub mod unlikelihood;

use finetuned_plugin_api::tape::{Seq, TapeBatch, V, positive};

/// −Σ log p over the chosen completions, divided by the step's number of those
/// tokens: the token mean once micro-batches are added up.
fn chosen_nll<'t>(batch: &TapeBatch<'t>, pairs: &[(Seq<'_, 't>, Seq<'_, 't>)]) -> V<'t> {
    use finetuned_plugin_api::loss::Role;
    let tokens = batch.totals().role(Role::Chosen).completion_weight;
    -batch.sum(pairs.iter().map(|(chosen, _)| chosen.logp())) / positive(tokens)
}

/// The numbers that preference trainers report: implicit rewards, how often the
/// chosen answer has the larger, and log-probabilities.
fn report(batch: &TapeBatch, chosen: (f64, f64), rejected: (f64, f64)) {
    let pairs = positive(batch.totals().pairs as f64);
    let ((chosen_reward, chosen_logp), (rejected_reward, rejected_logp)) = (chosen, rejected);
    report_rewards(batch, chosen_reward, rejected_reward);
    batch.metric("logps/chosen", chosen_logp / pairs);
    batch.metric("logps/rejected", rejected_logp / pairs);
}

/// The rewards of a pair alone.
fn report_rewards(batch: &TapeBatch, chosen: f64, rejected: f64) {
    let pairs = positive(batch.totals().pairs as f64);
    for (name, value) in [
        ("rewards/chosen", chosen),
        ("rewards/rejected", rejected),
        ("rewards/margins", chosen - rejected),
        ("rewards/accuracies", f64::from(chosen > rejected)),
    ] {
        batch.metric(name, value / pairs);
    }
}
