//! The model that a run trains, with its adapters and heads.

use finetuned_formats::{ModelConfig, PeftAdapter, TensorSource, VALUE_HEAD};
use finetuned_shaders::Device;

use super::heads::Heads;
use crate::error::EngineError;
use crate::model::adapter;
use crate::model::build::{LoadOptions, load};
use crate::model::decoder::Decoder;
use crate::model::value;
use crate::recipe::{Method, Recipe};

/// The model as the method trains it with the heads that the objective reads,
/// and whether its adapters are fresh.
///
/// # Errors
/// A damaged checkpoint, an adapter that does not fit, no memory.
pub fn load_for_training(
    ops: &Device,
    config: &ModelConfig,
    source: &dyn TensorSource,
    recipe: &Recipe,
    start: Option<&PeftAdapter>,
    heads: Heads,
    context: usize,
) -> Result<(Decoder, bool), EngineError> {
    if recipe.method == Method::Full && start.is_some() {
        return Err(EngineError::Adapter(
            "method \"full\" trains the base model itself and cannot start from an adapter; use method \"lora\"".into(),
        ));
    }
    if start.is_some_and(|peft| peft.config.value_head) && !heads.value {
        return Err(EngineError::Adapter(format!(
            "it is a reward model's and carries a value head, which the loss {} would not train; use loss = \"reward-model\", or another adapter",
            recipe.loss.name
        )));
    }
    let options = LoadOptions {
        trainable: recipe.method == Method::Full,
        nf4: (recipe.method == Method::Qlora).then_some(recipe.qlora.double_quant),
        context,
    };
    let mut model = load(ops, config, source, &options)?;
    let fresh = match (recipe.method, start) {
        (Method::Full, _) => false,
        (_, Some(peft)) => {
            adapter::attach_peft(ops, &mut model, peft)?;
            false
        }
        (_, None) => {
            adapter::attach_fresh(ops, &mut model, &recipe.lora, recipe.train.seed)?;
            true
        }
    };
    if heads.value && model.value_head.is_none() {
        let head = match value::stored(config, source)? {
            Some(head) => head,
            None => value::initial(config, recipe.train.seed),
        };
        let name = if recipe.method == Method::Full { value::WEIGHT } else { VALUE_HEAD };
        model.attach_value_head(ops, name, &head)?;
    }
    if !heads.language && model.head != model.embedding {
        // Nothing reads it, so there is no gradient, no optimizer state and no decay.
        model.parameters.get_mut(model.head).trainable = false;
    }
    Ok((model, fresh))
}
