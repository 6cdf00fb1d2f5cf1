//! Direct Preference Optimization and its relatives.
//!
//! For a pair, r = log π(y|x) − log π_ref(y|x) summed over the completion, its
//! end token included, and h = r_chosen − r_rejected. The loss is the mean over
//! pairs of
//!
//! | variant | loss | paper |
//! | --- | --- | --- |
//! | `sigmoid` | −(1 − ε) log σ(βh) − ε log σ(−βh) | DPO <https://arxiv.org/abs/2305.18290>; ε: conservative DPO |
//! | `hinge` | max(0, 1 − βh) | SLiC <https://arxiv.org/abs/2305.10425> |
//! | `ipo` | (h̄ − 1/(2β))², h̄ of means over tokens | IPO <https://arxiv.org/abs/2310.12036> |
//! | `robust` | (−(1 − ε) log σ(βh) + ε log σ(−βh)) / (1 − 2ε) | rDPO <https://arxiv.org/abs/2403.00409> |
//!
//! plus, with `rpo_alpha` α, α times the token mean of −log π over the chosen
//! completions (RPO, <https://arxiv.org/abs/2404.19733>). ε is
//! `label_smoothing`: the part of the pairs whose label is thought to be wrong.
//!
//! # Worked example
//! At the start policy and reference agree: h = 0, and the loss is ln 2 =
//! 0.6931 (`sigmoid`, `robust`), 1 (`hinge`), or 1/(4β²) = 25 at β = 0.1
//! (`ipo`). Later r_chosen = 2, r_rejected = −1, β = 0.1: h = 3,
//! −log σ(0.3) = 0.5544, and d loss / d logp of a chosen token is
//! −β σ(−0.3) = −0.0426.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::alignment::{Alignment, AlignmentNeeds, DataKind, Declared};
use finetuned_plugin_api::loss::Needs;
use finetuned_plugin_api::parameters::{Parameter, Values};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};
use finetuned_plugin_api::tape::{Formula, TapeBatch, V, positive};

pub const PLUGIN: BuiltIn = BuiltIn { descriptor, make: Make::Alignment(make) };

/// The shape of the loss; see the module's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    Sigmoid,
    Hinge,
    Ipo,
    Robust,
}

/// See the module's words.
pub struct Dpo {
    pub beta: f64,
    pub variant: Variant,
    pub label_smoothing: f64,
    pub rpo_alpha: Option<f64>,
}

fn descriptor() -> Descriptor {
    crate::described(
        "dpo",
        Kind::Alignment,
        "Direct Preference Optimization: makes the chosen answer more likely than the rejected one, relative to the policy that the run starts from.",
        "Direct Preference Optimization, https://arxiv.org/abs/2305.18290",
        vec![
            Parameter::number("beta", 0.1, "how strongly the policy is held to the reference").range(1e-6, 1e3),
            Parameter::choice("variant", &["sigmoid", "hinge", "ipo", "robust"], "sigmoid", "the shape of the loss"),
            Parameter::number(
                "label_smoothing",
                0.0,
                "part of the pairs thought to be labelled wrongly; sigmoid and robust",
            )
            .range(0.0, 0.499),
            Parameter::optional_number("rpo_alpha", "weight of the chosen answers' cross-entropy; none by default")
                .range(0.0, f64::INFINITY),
        ],
    )
}

fn make(values: &Values) -> Result<Box<dyn Alignment>, PluginError> {
    let variant = match values.text("variant")? {
        "hinge" => Variant::Hinge,
        "ipo" => Variant::Ipo,
        "robust" => Variant::Robust,
        _ => Variant::Sigmoid,
    };
    let label_smoothing = values.number("label_smoothing")?;
    if label_smoothing != 0.0 && matches!(variant, Variant::Hinge | Variant::Ipo) {
        return Err(PluginError::Parameter {
            plugin: "dpo".into(),
            key: "label_smoothing".into(),
            expected: "0 with this variant".into(),
            got: label_smoothing.to_string(),
        });
    }
    let objective =
        Dpo { beta: values.number("beta")?, variant, label_smoothing, rpo_alpha: values.optional_number("rpo_alpha")? };
    let needs = AlignmentNeeds { reference: true, ..AlignmentNeeds::only(DataKind::Pairs) };
    Ok(Box::new(Declared { needs, objective }))
}

impl Dpo {
    fn of_margin<'t>(&self, h: V<'t>) -> V<'t> {
        let (beta, e) = (self.beta, self.label_smoothing);
        let right = || (h * beta).log_sigmoid() * (1.0 - e);
        let wrong = || (-h * beta).log_sigmoid() * e;
        match self.variant {
            Variant::Sigmoid => -right() - wrong(),
            Variant::Robust => (wrong() - right()) / (1.0 - 2.0 * e),
            Variant::Hinge => (1.0 - h * beta).relu(),
            Variant::Ipo => (h - 1.0 / (2.0 * beta)).square(),
        }
    }
}

impl Formula for Dpo {
    fn needs(&self) -> Needs {
        Needs { reference_logp: true, ..Needs::default() }
    }

    fn loss<'t>(&self, batch: &TapeBatch<'t>) -> Result<V<'t>, PluginError> {
        let pairs = batch.pairs()?;
        let losses = pairs.iter().map(|(chosen, rejected)| {
            let (win, lose) = (chosen.log_ratio(), rejected.log_ratio());
            super::report(
                batch,
                (self.beta * win.value(), chosen.logp().value()),
                (self.beta * lose.value(), rejected.logp().value()),
            );
            self.of_margin(match self.variant {
                Variant::Ipo => chosen.mean_log_ratio() - rejected.mean_log_ratio(),
                _ => win - lose,
            })
        });
        let loss = batch.sum(losses) / positive(batch.totals().pairs as f64);
        Ok(match self.rpo_alpha {
            Some(alpha) => loss + super::chosen_nll(batch, &pairs) * alpha,
            None => loss,
        })
    }
}
