//! Looking at a dataset as a model will see it, without training.

use std::path::Path;

use finetuned_data::{DatasetReport, prepare as prepare_data};

use crate::error::EngineError;
use crate::recipe::Recipe;
use crate::train::prepare;

/// What the receipt would say of this dataset under this model's tokenizer and
/// template.
///
/// # Errors
/// A dataset that would be refused, with line, cause and remedy.
pub fn check_data(
    data: &Path,
    validation: Option<&Path>,
    model: &Path,
    recipe: &Recipe,
) -> Result<DatasetReport, EngineError> {
    let opened = prepare::open_model(model)?;
    let options = prepare::data_options(recipe, opened.files.config.vocab_size);
    Ok(prepare_data(data, validation, &opened.tokenizer, &options)?.report)
}
