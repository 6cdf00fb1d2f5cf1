//! Odds Ratio Preference Optimization: imitation and preference in one, with
//! no reference.
//!
//! With m the mean log-probability over a completion's tokens and
//! log odds(m) = m − log(1 − eᵐ), the loss is
//!
//! NLL − β · mean over pairs of log σ(log odds(m_chosen) − log odds(m_rejected))
//!
//! where NLL is the token mean over prompt and chosen completion together
//! (ORPO: Monolithic Preference Optimization without Reference Model,
//! <https://arxiv.org/abs/2403.07691>; β is the paper's λ).
//!
//! # Worked example
//! m_chosen = −0.5, m_rejected = −1: log odds are −0.5 − log(1 − 0.6065) =
//! 0.4328 and −1 − log(1 − 0.3679) = −0.5413; their difference is 0.9741 and
//! −log σ is 0.3203. With NLL = 0.5 and β = 0.1 the loss is 0.5320.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::alignment::{Alignment, AlignmentNeeds, DataKind, Declared};
use finetuned_plugin_api::loss::{Needs, Role};
use finetuned_plugin_api::parameters::{Parameter, Values};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};
use finetuned_plugin_api::tape::{Formula, TapeBatch, V, positive};

pub const PLUGIN: BuiltIn = BuiltIn { descriptor, make: Make::Alignment(make) };

/// See the module's words.
pub struct Orpo {
    pub beta: f64,
}

fn descriptor() -> Descriptor {
    crate::described(
        "orpo",
        Kind::Alignment,
        "Odds Ratio Preference Optimization: imitates the chosen answer and turns from the rejected one, without a reference.",
        "ORPO: Monolithic Preference Optimization without Reference Model, https://arxiv.org/abs/2403.07691",
        vec![
            Parameter::number("beta", 0.1, "weight of the odds ratio beside the cross-entropy")
                .range(0.0, f64::INFINITY),
        ],
    )
}

fn make(values: &Values) -> Result<Box<dyn Alignment>, PluginError> {
    let objective = Orpo { beta: values.number("beta")? };
    Ok(Box::new(Declared { needs: AlignmentNeeds::only(DataKind::Pairs), objective }))
}

/// log(p / (1 − p)) from log p; a probability of 1 is held just below.
fn log_odds(logp: V) -> V {
    logp - logp.at_most(-1e-7).log1mexp()
}

impl Formula for Orpo {
    fn needs(&self) -> Needs {
        Needs { prompt_logp: true, ..Needs::default() }
    }

    fn loss<'t>(&self, batch: &TapeBatch<'t>) -> Result<V<'t>, PluginError> {
        let count = positive(batch.totals().pairs as f64);
        let pairs = batch.pairs()?;
        let ratios = pairs.iter().map(|(chosen, rejected)| {
            let (win, lose) = (chosen.mean_logp(), rejected.mean_logp());
            super::report(batch, (self.beta * win.value(), win.value()), (self.beta * lose.value(), lose.value()));
            let ratio = log_odds(win) - log_odds(lose);
            batch.metric("log_odds_chosen", ratio.value() / count);
            ratio.log_sigmoid()
        });
        let ratio = batch.sum(ratios) / count;
        let nll = -batch.sum(pairs.iter().map(|(chosen, _)| chosen.whole_logp()))
            / positive(batch.totals().role(Role::Chosen).weight);
        batch.metric("log_odds_ratio", ratio.value());
        batch.metric("nll_loss", nll.value());
        Ok(nll - ratio * self.beta)
    }
}
