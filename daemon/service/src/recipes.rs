//! The recipes that ship with finetune, and recipes from files.

use std::path::Path;

use finetuned_engine::recipe::{self, Recipe};
use finetuned_plugin_api::suggest::nearest;

use crate::config::{TomlFile, place_recipe_error};
use crate::error::{Error, Result};

/// Name and text, from `config/recipes/`.
pub const RECIPES: &[(&str, &str)] = &[
    ("quick-lora", include_str!("../../../config/recipes/quick-lora.toml")),
    ("lora-quality", include_str!("../../../config/recipes/lora-quality.toml")),
    ("qlora-small-memory", include_str!("../../../config/recipes/qlora-small-memory.toml")),
    ("full-small-model", include_str!("../../../config/recipes/full-small-model.toml")),
    ("dora", include_str!("../../../config/recipes/dora.toml")),
    ("rslora-high-rank", include_str!("../../../config/recipes/rslora-high-rank.toml")),
    ("continued-pretraining", include_str!("../../../config/recipes/continued-pretraining.toml")),
    ("dpo", include_str!("../../../config/recipes/dpo.toml")),
    ("overnight", include_str!("../../../config/recipes/overnight.toml")),
];

/// The recipe (a file, or a name of [`RECIPES`]) with `--set` over it.
///
/// # Errors
/// No such file or name, or a mistake in it, with its line.
pub fn layers(recipe: Option<&str>, set: &[String]) -> Result<toml::Table> {
    let mut merged = toml::Table::new();
    if let Some(recipe) = recipe {
        let file = read(recipe)?;
        Recipe::from_table(&file.table).map_err(|error| Error::bad_input(place_recipe_error(&error, &file, "")))?;
        recipe::merge(&mut merged, &file.table);
    }
    for assignment in set {
        recipe::set(&mut merged, assignment)?;
    }
    Ok(merged)
}

fn read(recipe: &str) -> Result<TomlFile> {
    if Path::new(recipe).is_file() {
        return TomlFile::read(Path::new(recipe)).map_err(|error| Error::bad_input(format!("{error:#}")));
    }
    if let Some((name, text)) = RECIPES.iter().find(|(name, _)| *name == recipe) {
        return TomlFile::parse(&format!("recipe {name}"), text)
            .map_err(|error| Error::bad_input(format!("{error:#}")));
    }
    let names: Vec<&str> = RECIPES.iter().map(|(name, _)| *name).collect();
    let hint =
        nearest(recipe, names.iter().copied()).map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
    let message = format!("there is no file or recipe `{recipe}`; {hint}The recipes are {}", names.join(", "));
    Err(Error::not_found(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_recipe_is_valid_and_named_after_its_file() {
        for (name, text) in RECIPES {
            assert!(text.starts_with(&format!("# {name}: ")), "{name}");
            let table = layers(Some(name), &[]).unwrap();
            Recipe::from_table(&table).unwrap();
        }
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/recipes");
        if let Ok(entries) = std::fs::read_dir(folder) {
            assert_eq!(entries.count(), RECIPES.len(), "a file in config/recipes is not in the table");
        }
    }

    #[test]
    fn set_wins_and_mistakes_are_placed() {
        let table = layers(Some("quick-lora"), &["lora.rank=4".into(), "train.epochs=0.5".into()]).unwrap();
        let recipe = Recipe::from_table(&table).unwrap();
        assert_eq!((recipe.lora.rank, recipe.train.epochs), (4, 0.5));
        assert!(layers(Some("quik-lora"), &[]).unwrap_err().to_string().contains("did you mean `quick-lora`"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.toml");
        std::fs::write(&path, "\n[lora]\nrnk = 1\n").unwrap();
        let error = layers(path.to_str(), &[]).unwrap_err().to_string();
        assert!(error.contains("r.toml:3: ") && error.contains("lora.rank"), "{error}");
    }
}
