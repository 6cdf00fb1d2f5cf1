//! A run's rows, and a look at them without training.

use std::path::Path;

use finetuned_data::{DataKind, DataOptions, DatasetReport, Examples, Look, Prepared};

use crate::base::BaseModel;
use crate::error::EngineError;
use crate::plugins;
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
        context: None,
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
/// A dataset that would be refused, with line, cause and remedy; one that the loss
/// which the recipe names does not learn from. Under the default loss that is a warning
/// of the report: it says which loss to name.
pub fn check(
    data: &Path,
    validation: Option<&Path>,
    base: &Path,
    recipe: &Recipe,
) -> Result<DatasetReport, EngineError> {
    let Prepared { train, mut report, .. } = prepare(data, validation, &BaseModel::open(base)?, recipe)?;
    match fits_loss(train.kind, recipe) {
        Err(error) if recipe.loss == Recipe::default().loss => report.warnings.insert(0, error.to_string()),
        fits => fits?,
    }
    Ok(report)
}

/// Looks at a dataset's first rows, without the base model.
///
/// # Errors
/// A file whose rows no model could use, with line, cause and remedy; rows that the
/// recipe's loss does not learn from.
pub fn look(data: &Path, recipe: &Recipe) -> Result<Look, EngineError> {
    let found = finetuned_data::look(data, &[])?;
    fits_loss(found.kind, recipe)?;
    Ok(found)
}

/// # Errors
/// The recipe's loss is built in and does not learn from such data. What a plugin
/// learns from is known where it is loaded.
fn fits_loss(found: DataKind, recipe: &Recipe) -> Result<(), EngineError> {
    let registry = plugins::registry(&[])?;
    match registry.objective(&recipe.loss.name, &recipe.loss.parameters) {
        Ok(objective) => fits(found, objective.alignment_needs().map_or(DataKind::Supervised, |needs| needs.data)),
        Err(_) => Ok(()),
    }
}

/// Refuses data of another kind than an objective learns from.
///
/// # Errors
/// Names what the dataset holds and what the objective asks for.
pub(crate) fn fits(found: DataKind, wanted: DataKind) -> Result<(), EngineError> {
    if found == wanted {
        return Ok(());
    }
    let words = |kind| match kind {
        DataKind::Supervised => ("rows to imitate", "; for such data set loss = \"cross-entropy\""),
        DataKind::Pairs => (
            "preference pairs (prompt, chosen, rejected)",
            "; for such data set loss = \"dpo\" (or orpo, simpo, cpo, reward-model)",
        ),
        DataKind::Labelled => {
            ("labelled completions (prompt, completion, label)", "; for such data set loss = \"kto\"")
        }
        DataKind::Rewards => ("completions with rewards", ""),
        DataKind::Prompts => ("prompts alone", ""),
    };
    let ((found, remedy), (asks, _)) = (words(found), words(wanted));
    Err(EngineError::WrongData { found, asks, remedy })
}

fn prepare(data: &Path, validation: Option<&Path>, base: &BaseModel, recipe: &Recipe) -> Result<Prepared, EngineError> {
    let config = &base.files.config;
    let mut options = options(recipe, config.vocab_size);
    // Learned positions end somewhere; rotary ones do not.
    if config.family.parts.position_embedding.is_some() {
        options.sequence_length = options.sequence_length.min(config.max_positions);
    }
    options.context = Some(config.max_positions).filter(|positions| *positions > 0);
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
