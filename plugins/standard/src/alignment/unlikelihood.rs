//! Unlikelihood training: imitate good answers, make the tokens of bad ones
//! unlikely.
//!
//! Over the tokens of labelled answers, the token mean of
//!
//! - desirable: −log p,
//! - undesirable: −α log(1 − p)
//!
//! (Neural Text Generation with Unlikelihood Training,
//! <https://arxiv.org/abs/1908.04319>, its sequence-level form; Don't Say
//! That!, <https://arxiv.org/abs/1911.03860>).
//!
//! # Worked example
//! A good token and a bad token, p = 0.5 each, α = 1: the loss is ln 2 =
//! 0.6931. Its derivative by the good log p is −0.5, by the bad one
//! p / (1 − p) / 2 = 0.5.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::alignment::{Alignment, AlignmentNeeds, DataKind, Declared};
use finetuned_plugin_api::loss::Role;
use finetuned_plugin_api::parameters::{Parameter, Values};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};
use finetuned_plugin_api::tape::{Formula, TapeBatch, V};

pub const PLUGIN: BuiltIn = BuiltIn { descriptor, make: Make::Alignment(make) };

/// See the module's words.
pub struct Unlikelihood {
    pub alpha: f64,
}

fn descriptor() -> Descriptor {
    crate::described(
        "unlikelihood",
        Kind::Alignment,
        "Imitates answers labelled good and makes the tokens of bad ones unlikely.",
        "Neural Text Generation with Unlikelihood Training, https://arxiv.org/abs/1908.04319",
        vec![Parameter::number("alpha", 1.0, "weight of the bad answers").range(0.0, f64::INFINITY)],
    )
}

fn make(values: &Values) -> Result<Box<dyn Alignment>, PluginError> {
    let objective = Unlikelihood { alpha: values.number("alpha")? };
    Ok(Box::new(Declared { needs: AlignmentNeeds::only(DataKind::Labelled), objective }))
}

impl Formula for Unlikelihood {
    fn loss<'t>(&self, batch: &TapeBatch<'t>) -> Result<V<'t>, PluginError> {
        let plain = batch.batch();
        let (mut good, mut bad) = (vec![0.0; plain.len()], vec![0.0; plain.len()]);
        for sequence in plain.sequences.iter().filter(|sequence| sequence.role == Role::Completion) {
            let marks = match sequence.label {
                Some(true) => &mut good,
                Some(false) => &mut bad,
                None => return Err(PluginError::Batch("unlikelihood: an answer without a label".into())),
            };
            for i in sequence.tokens.clone() {
                marks[i] = f64::from(u8::from(plain.completion[i]));
            }
        }
        let (good, bad) = (batch.constants(good), batch.constants(bad));
        let logp = batch.logp();
        // A probability of 1 is held just below, where the loss is finite.
        let avoided = logp.at_most(-1e-6).log1mexp() * self.alpha;
        Ok(-batch.token_mean(good * logp + bad * avoided))
    }
}
