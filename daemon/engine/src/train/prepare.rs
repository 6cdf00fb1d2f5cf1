//! Everything before the first step: files, tokenizer, dataset, model,
//! adapters.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use finetuned_data::{ChatTokenizer, DataOptions, Examples, Prepared, TooLong, TrainOn};
use finetuned_formats::{ModelFiles, PeftAdapter, VALUE_HEAD};
use finetuned_plugin_api::optimizer::Optimizer;
use finetuned_plugin_api::registry::{Kind, Registry};
use finetuned_shaders::Device;

use super::heads::Heads;
use crate::api::{PluginLibrary, TrainRequest};
use crate::error::EngineError;
use crate::model::adapter;
use crate::model::build::{LoadOptions, load};
use crate::model::decoder::Decoder;
use crate::model::value;
use crate::recipe::{Method, Recipe};

/// The device that a request names.
///
/// # Errors
/// A device that is not there, or that this build has not.
pub fn device(asked: &str, threads: Option<usize>) -> Result<Arc<Device>, EngineError> {
    finetuned_shaders::device::open(asked, threads).map_err(|error| crate::devices::refused(asked, error))
}

/// The built-in losses, optimizers and alignment methods, and those of these
/// libraries, which are loaded into this process for good.
///
/// # Errors
/// A library that cannot be loaded, in one line.
pub fn registry(libraries: &[PluginLibrary]) -> Result<Registry, EngineError> {
    let mut registry = Registry::new(finetuned_standard::BUILT_IN)?;
    for library in libraries {
        for entry in finetuned_plugin_api::abi::load(&library.path, &library.sha256)? {
            // A library may hold more than the recipe asks for: a name of it that
            // is taken stays with whoever had it first, as `finetune plugin list`
            // says.
            let _ = registry.add(entry);
        }
    }
    Ok(registry)
}

/// The recipe's optimizer. Weight decay is off unless the recipe says
/// otherwise, whatever the optimizer's own default.
///
/// # Errors
/// An unknown name or parameter, with the nearest known one.
pub fn optimizer(recipe: &Recipe, registry: &Registry) -> Result<Box<dyn Optimizer>, EngineError> {
    let mut parameters = recipe.optimizer.parameters.clone();
    let entry = registry.find(Kind::Optimizer, &recipe.optimizer.name)?;
    let decays = entry.descriptor.parameters.0.iter().any(|p| p.name == "weight_decay");
    if decays && !parameters.contains_key("weight_decay") {
        parameters.insert("weight_decay".into(), 0.0.into());
    }
    Ok(registry.optimizer(&recipe.optimizer.name, &parameters)?)
}

/// What the recipe says of the data.
pub fn data_options(recipe: &Recipe, vocab_size: usize) -> DataOptions {
    DataOptions {
        sequence_length: recipe.train.sequence_length,
        too_long: match recipe.data.too_long.as_str() {
            "truncate" => TooLong::Truncate,
            "refuse" => TooLong::Refuse,
            _ => TooLong::Drop,
        },
        validation_fraction: recipe.train.validation_fraction,
        seed: recipe.train.seed,
        train_on: if recipe.data.train_on == "all" { TrainOn::All } else { TrainOn::Assistant },
        max_rows: recipe.data.max_rows,
        drop_duplicates: recipe.data.drop_duplicates,
        vocab_size: Some(vocab_size),
    }
}

/// A model's files with its tokenizer.
pub struct Opened {
    pub files: ModelFiles,
    pub tokenizer: ChatTokenizer,
}

/// Opens a model; no weights are read yet.
///
/// # Errors
/// See [`ModelFiles::open`].
pub fn open_model(path: &Path) -> Result<Opened, EngineError> {
    let files = ModelFiles::open(path)?;
    let tokenizer = ChatTokenizer::new(&files.tokenizer)?;
    Ok(Opened { files, tokenizer })
}

/// Reads the request's dataset.
///
/// # Errors
/// A file that cannot be used, with line, cause and remedy.
pub fn read_data(request: &TrainRequest, opened: &Opened) -> Result<Prepared, EngineError> {
    let mut options = data_options(&request.recipe, opened.files.config.vocab_size);
    // Learned positions end somewhere; rotary ones do not.
    if opened.files.config.architecture == finetuned_formats::Architecture::Gpt2 {
        options.sequence_length = options.sequence_length.min(opened.files.config.max_positions);
    }
    Ok(finetuned_data::prepare(&request.data, request.validation.as_deref(), &opened.tokenizer, &options)?)
}

/// The longest document that training and validation will run.
pub fn longest_document(prepared: &Prepared) -> usize {
    [&prepared.train, &prepared.validation].into_iter().map(longest).max().unwrap_or(1).max(1)
}

fn longest(examples: &Examples) -> usize {
    match examples {
        Examples::Supervised(list) => list.iter().map(|e| e.tokens.len()).max(),
        Examples::Pairs(list) => list.iter().map(|e| e.prompt.len() + e.chosen.len().max(e.rejected.len())).max(),
        // A mismatched completion may follow any prompt.
        Examples::Labelled(list) => {
            let prompt = list.iter().map(|e| e.prompt.len()).max();
            let completion =
                list.iter().map(|e| e.completion.len().max(e.kl_completion.as_ref().map_or(0, Vec::len))).max();
            prompt.zip(completion).map(|(p, c)| p + c)
        }
    }
    .unwrap_or(0)
}

/// The model as the method trains it with the heads that the objective reads,
/// and whether its adapters are fresh.
///
/// # Errors
/// A damaged checkpoint, an adapter that does not fit, no memory.
pub fn load_for_training(
    ops: &Device,
    files: &ModelFiles,
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
    let mut model = load(ops, &files.config, files.tensors.as_ref(), &options)?;
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
        let head = match value::stored(&files.config, files.tensors.as_ref())? {
            Some(head) => head,
            None => value::initial(&files.config, recipe.train.seed),
        };
        let name = if recipe.method == Method::Full { value::WEIGHT } else { VALUE_HEAD };
        value::attach(ops, &mut model, name, &head)?;
    }
    if !heads.language && model.head != model.embedding {
        // Nothing reads it, so there is nothing to learn, keep moments of or decay.
        model.parameters.get_mut(model.head).trainable = false;
    }
    Ok((model, fresh))
}

/// The name by which an adapter's configuration refers to its base.
pub fn base_name(model: &Path) -> String {
    let absolute = std::fs::canonicalize(model).unwrap_or_else(|_| PathBuf::from(model));
    absolute.display().to_string()
}
