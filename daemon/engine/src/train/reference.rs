//! The reference policy: what the run started from, frozen.
//!
//! Under a fresh adapter that is the model with its adapters off; otherwise a
//! copy of the starting values of whatever is trained. A document's
//! log-probabilities under it are computed once, alone in their batch, so that
//! they are the same bits whichever step asks first, before and after a
//! resume.

use std::collections::HashMap;

use finetuned_plugin_api::loss::Needs;
use finetuned_shaders::{Device, StatisticSet, TensorError, Weight};

use super::micro_batch::{MicroBatch, Placed};
use crate::model::decoder::{Decoder, Keep};
use crate::model::linear::Pass;
use crate::model::parameters::ParameterId;

pub enum Policy {
    AdaptersOff,
    Frozen(Vec<(ParameterId, Weight)>),
}

pub struct Reference {
    policy: Policy,
    /// Keyed by the document's tokens and the rows that predict its listed ones, because
    /// training and validation examples share their numbers. Mismatched completions are
    /// not kept: with shuffled rows they are new every time.
    known: HashMap<(Vec<u32>, Vec<u32>), Vec<f32>>,
}

impl Reference {
    /// Freezes the model as it now is.
    ///
    /// # Errors
    /// No memory for the copy.
    pub fn freeze(ops: &Device, model: &Decoder, fresh_adapter: bool) -> Result<Reference, TensorError> {
        let policy = if fresh_adapter {
            Policy::AdaptersOff
        } else {
            let copies = model
                .parameters
                .trainable()
                .into_iter()
                .map(|id| Ok((id, Weight::Dense(ops.copy(model.parameters.tensor(id)?)?))))
                .collect::<Result<_, TensorError>>()?;
            Policy::Frozen(copies)
        };
        Ok(Reference { policy, known: HashMap::new() })
    }

    /// Log-probabilities of the listed tokens of these documents, in order.
    pub fn logp(
        &mut self,
        ops: &Device,
        model: &mut Decoder,
        documents: &[Placed],
        needs: &Needs,
    ) -> Result<Vec<f32>, TensorError> {
        let mut all = Vec::new();
        for placed in documents {
            let micro = MicroBatch::new(std::slice::from_ref(placed), needs);
            let key = (micro.batch.tokens.clone(), micro.rows.clone());
            if let Some(known) = self.known.get(&key) {
                all.extend_from_slice(known);
                continue;
            }
            let logp = self.compute(ops, model, &micro)?;
            all.extend_from_slice(&logp);
            if placed.is_trained() {
                self.known.insert(key, logp);
            }
        }
        Ok(all)
    }

    fn compute(&mut self, ops: &Device, model: &mut Decoder, micro: &MicroBatch) -> Result<Vec<f32>, TensorError> {
        match &mut self.policy {
            Policy::AdaptersOff => token_logp(ops, model, micro, &Pass::evaluation(false)),
            Policy::Frozen(copies) => {
                swap(model, copies);
                let logp = token_logp(ops, model, micro, &Pass::evaluation(true));
                swap(model, copies);
                logp
            }
        }
    }
}

fn swap(model: &mut Decoder, copies: &mut [(ParameterId, Weight)]) {
    for (id, copy) in copies {
        std::mem::swap(&mut model.parameters.get_mut(*id).value, copy);
    }
}

/// Log-probabilities of a micro-batch's listed tokens, without gradient.
pub fn token_logp(ops: &Device, model: &Decoder, micro: &MicroBatch, pass: &Pass) -> Result<Vec<f32>, TensorError> {
    if micro.targets.is_empty() {
        return Ok(Vec::new());
    }
    let forward = model.forward(ops, &micro.batch, pass, Keep::Nothing)?;
    let head = model.head_input(ops, &forward, &micro.rows)?;
    Ok(ops.token_logp(&head.h, &model.lm_head(), &micro.targets, StatisticSet::default())?.logp)
}
