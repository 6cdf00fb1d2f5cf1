//! A run's rows, and a look at them without training.

use std::path::Path;

use finetuned_data::{DataOptions, DatasetReport, Examples, Prepared};

use crate::base::BaseModel;
use crate::error::EngineError;
use crate::recipe::Recipe;
use crate::vocabulary::TrainRequest;

/// What the recipe says of the data.
fn options(recipe: &Recipe, vocab_size: usize) -> DataOptions {
    DataOptions {
        sequence_length: recipe.train.sequence_length,
        too_long: recipe.data.too_long,
        validation_fraction: recipe.train.validation_fraction,
        seed: recipe.train.seed,
        train_on: recipe.data.train_on,
        max_rows: recipe.data.max_rows,
        drop_duplicates: recipe.data.drop_duplicates,
        vocab_size: Some(vocab_size),
        columns: Vec::new(),
    }
}

/// Reads the request's dataset.
///
/// # Errors
/// A file that cannot be used, with line, cause and remedy.
pub fn read(request: &TrainRequest, base: &BaseModel) -> Result<Prepared, EngineError> {
    prepare(&request.data, request.validation.as_deref(), base, &request.recipe)
}

/// What the receipt would say about this dataset with this base model's tokenizer
/// and template.
///
/// # Errors
/// A dataset that would be refused, with line, cause and remedy.
pub fn check(
    data: &Path,
    validation: Option<&Path>,
    base: &Path,
    recipe: &Recipe,
) -> Result<DatasetReport, EngineError> {
    Ok(prepare(data, validation, &BaseModel::open(base)?, recipe)?.report)
}

fn prepare(data: &Path, validation: Option<&Path>, base: &BaseModel, recipe: &Recipe) -> Result<Prepared, EngineError> {
    let config = &base.files.config;
    let mut options = options(recipe, config.vocab_size);
    // Learned positions end somewhere; rotary ones do not.
    if config.family.parts.position_embedding.is_some() {
        options.sequence_length = options.sequence_length.min(config.max_positions);
    }
    Ok(finetuned_data::prepare(data, validation, &base.tokenizer, &options)?)
}

/// Tokens of the longest document that training and validation will run.
pub(crate) fn longest_document(prepared: &Prepared) -> usize {
    [&prepared.train, &prepared.validation].map(Examples::longest_document).into_iter().max().unwrap_or(1).max(1)
}

/// Tokens of the first example, for the comparison after saving.
pub(crate) fn probe_tokens(examples: &Examples) -> Vec<u32> {
    let first = examples.list.first().and_then(|example| example.documents.first());
    first.map_or_else(|| vec![0], |document| document.tokens.clone())
}
