//! From TOML tables to a [`Recipe`]: unknown keys with the nearest known one,
//! types and ranges checked key by key.

use finetuned_plugin_api::suggest::nearest;
use serde::de::DeserializeOwned;

use crate::keys::lookup;
use crate::recipe::{Chosen, KEYS, Method, Recipe, RecipeError, Targets, Variant};

/// Sections that a plugin defines: their keys are checked by the plugin.
const OPEN_SECTIONS: [&str; 2] = ["loss", "optimizer"];

/// Sections with free names below them.
const OPEN_TABLES: [&str; 2] = ["lora.rank_pattern", "lora.alpha_pattern"];

pub(crate) fn recipe_from_table(table: &toml::Table) -> Result<Recipe, RecipeError> {
    let mut merged = toml::Table::new();
    crate::recipe::merge(&mut merged, table);
    check_keys(&merged, "")?;
    let defaults = Recipe::default();
    let recipe = Recipe {
        base: value(&merged, "base")?.unwrap_or(defaults.base),
        method: value(&merged, "method")?.unwrap_or(defaults.method),
        loss: chosen(&merged, "loss", defaults.loss)?,
        lora: section(&merged, "lora")?,
        qlora: section(&merged, "qlora")?,
        train: section(&merged, "train")?,
        data: section(&merged, "data")?,
        optimizer: chosen(&merged, "optimizer", defaults.optimizer)?,
        checkpoint: section(&merged, "checkpoint")?,
    };
    check_ranges(&merged)?;
    check_together(&recipe)?;
    Ok(recipe)
}

pub(crate) fn set(table: &mut toml::Table, assignment: &str) -> Result<(), RecipeError> {
    let bad = |reason: &str| RecipeError::BadValue { key: assignment.to_string(), reason: reason.to_string() };
    let (key, text) = assignment.split_once('=').ok_or_else(|| bad("expected key=value"))?;
    let key = key.trim();
    let text = text.trim();
    let parts: Vec<&str> = key.split('.').collect();
    if parts.iter().any(|part| part.is_empty()) {
        return Err(bad("a part of the key is empty"));
    }
    let parsed = format!("v = {text}").parse::<toml::Table>().ok().and_then(|mut t| t.remove("v"));
    let mut nested = parsed.unwrap_or_else(|| toml::Value::String(text.to_string()));
    for part in parts.iter().rev() {
        nested = toml::Value::Table(toml::Table::from_iter([((*part).to_string(), nested)]));
    }
    if let toml::Value::Table(nested) = nested {
        crate::recipe::merge(table, &nested);
    }
    Ok(())
}

fn check_keys(table: &toml::Table, prefix: &str) -> Result<(), RecipeError> {
    for (name, value) in table {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if OPEN_SECTIONS.contains(&prefix) || OPEN_TABLES.contains(&prefix) {
            continue;
        }
        let known = KEYS.iter().any(|key| key.path == path);
        let section = KEYS.iter().any(|key| key.path.starts_with(&format!("{path}.")));
        match value {
            toml::Value::Table(inner) if section || OPEN_TABLES.contains(&path.as_str()) => check_keys(inner, &path)?,
            _ if known => {}
            _ => {
                let nearest = nearest(&path, KEYS.iter().map(|key| &*key.path)).map(str::to_string);
                return Err(RecipeError::UnknownKey { nearest, key: path });
            }
        }
    }
    Ok(())
}

fn value<T: DeserializeOwned>(table: &toml::Table, key: &str) -> Result<Option<T>, RecipeError> {
    table.get(key).map(|v| v.clone().try_into().map_err(|e: toml::de::Error| bad(key, &e))).transpose()
}

/// A section, read key by key so that an error names its key.
fn section<T: DeserializeOwned + Default>(table: &toml::Table, name: &str) -> Result<T, RecipeError> {
    let Some(value) = table.get(name) else { return Ok(T::default()) };
    let Some(entries) = value.as_table() else {
        return Err(RecipeError::BadValue { key: name.into(), reason: format!("expected a table [{name}]") });
    };
    for (key, value) in entries {
        let one = toml::Table::from_iter([(key.clone(), value.clone())]);
        if let Err(e) = toml::Value::Table(one).try_into::<T>() {
            return Err(bad(&format!("{name}.{key}"), &e));
        }
    }
    value.clone().try_into().map_err(|e| bad(name, &e))
}

fn chosen(table: &toml::Table, name: &str, default: Chosen) -> Result<Chosen, RecipeError> {
    let Some(value) = table.get(name) else { return Ok(default) };
    let Some(entries) = value.as_table() else {
        return Err(RecipeError::BadValue { key: name.into(), reason: format!("expected a name or a table [{name}]") });
    };
    let mut entries = entries.clone();
    let chosen_name = match entries.remove("name") {
        None => default.name,
        Some(toml::Value::String(name)) => name,
        Some(other) => {
            return Err(RecipeError::BadValue {
                key: format!("{name}.name"),
                reason: format!("expected a name, got {other}"),
            });
        }
    };
    let parameters = entries
        .into_iter()
        .map(|(key, value)| {
            let json = serde_json::to_value(&value)
                .map_err(|e| RecipeError::BadValue { key: format!("{name}.{key}"), reason: e.to_string() })?;
            Ok((key, json))
        })
        .collect::<Result<_, RecipeError>>()?;
    Ok(Chosen { name: chosen_name, parameters })
}

fn bad(key: &str, error: &toml::de::Error) -> RecipeError {
    let reason = error.message().trim().to_string();
    RecipeError::BadValue { key: key.to_string(), reason }
}

/// What one key cannot say: what two keys are together.
fn check_together(r: &Recipe) -> Result<(), RecipeError> {
    let fail = |key: &str, reason: String| Err(RecipeError::BadValue { key: key.into(), reason });
    let t = &r.train;
    if t.micro_batch_size > t.batch_size {
        return fail(
            "train.micro_batch_size",
            format!("{} is more than train.batch_size, {}", t.micro_batch_size, t.batch_size),
        );
    }
    if t.offload_activations && !t.gradient_checkpointing {
        return fail(
            "train.offload_activations",
            "needs train.gradient_checkpointing = true: what it moves to host memory is the one activation that a layer then keeps".into(),
        );
    }
    if let Targets::Named(name) = &r.lora.targets
        && name != Targets::ALL
    {
        let all = Targets::ALL;
        return fail("lora.targets", format!("\"{name}\" must be \"{all}\" or a list of names, [\"{name}\"]"));
    }
    if r.method == Method::Full && r.lora.variant != Variant::Lora {
        return fail("lora.variant", "method \"full\" trains no adapter; use method = \"lora\"".into());
    }
    Ok(())
}

/// Each value that is set lies in the range of its key.
fn check_ranges(table: &toml::Table) -> Result<(), RecipeError> {
    for key in KEYS.iter() {
        if let Some(reason) = lookup(table, &key.path).and_then(|value| key.refuses(value)) {
            return Err(RecipeError::BadValue { key: key.path.clone(), reason });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Key, Kind, Range};
    use crate::recipe::Schedule;

    fn parse(text: &str) -> Result<Recipe, RecipeError> {
        Recipe::from_table(&text.parse().expect("valid TOML"))
    }

    #[test]
    fn empty_is_default() {
        assert_eq!(parse("").unwrap(), Recipe::default());
    }

    /// A value that no key has by default.
    fn other_value(key: &Key) -> toml::Value {
        match key.kind {
            Kind::Flag => (key.default.as_deref() != Some("true")).into(),
            Kind::Whole => 4.into(),
            Kind::Number => 0.25.into(),
            Kind::Word(words) => {
                let word = words.iter().find(|word| key.default.as_deref() != Some(format!("\"{word}\"").as_str()));
                (*word.unwrap()).into()
            }
            Kind::Names(_) => vec!["q_proj"].into(),
            Kind::Table(_) => toml::Table::from_iter([("q_proj".to_string(), 5.into())]).into(),
            _ => "another".into(),
        }
    }

    #[test]
    fn every_declared_key_is_read_and_its_range_is_held() {
        for key in KEYS.iter() {
            let parse_with = |value: toml::Value| {
                let mut table = toml::Table::new();
                set(&mut table, &format!("{}={value}", key.path)).unwrap();
                if key.path == "train.offload_activations" {
                    set(&mut table, "train.gradient_checkpointing=true").unwrap();
                }
                Recipe::from_table(&table)
            };
            let recipe = parse_with(other_value(key)).unwrap_or_else(|e| panic!("`{}`: {e}", key.path));
            assert_ne!(recipe, Recipe::default(), "`{}` is declared and nothing reads it", key.path);
            if let Range::AtLeast(bound) | Range::Above(bound) | Range::HalfOpen(_, bound) = key.range {
                let outside = match (key.kind, key.range) {
                    (Kind::Whole, _) => (bound as i64 - 1).into(),
                    (_, Range::AtLeast(_)) => (bound - 1.0).into(),
                    _ => bound.into(),
                };
                let error = parse_with(outside).unwrap_err().to_string();
                assert!(error.starts_with(&format!("`{}`: ", key.path)), "{error}");
            }
        }
    }

    /// A key that nothing reads would be a promise that is not kept.
    #[test]
    fn every_key_is_read_outside_its_declaration() {
        fn collect(folder: &std::path::Path, text: &mut String) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                if path.is_dir() && name != "recipe" {
                    collect(&path, text);
                } else if name.ends_with(".rs") && name != "recipe.rs" && name != "tests.rs" {
                    *text += &std::fs::read_to_string(&path).unwrap();
                }
            }
        }
        let mut text = String::new();
        collect(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
        let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
        let words: Vec<String> = code
            .flat_map(|line| line.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.')))
            .flat_map(|part| part.split('.').skip(1).map(str::to_string).collect::<Vec<_>>())
            .collect();
        for key in KEYS.iter() {
            // The optimizer's parameters are handed to it by name.
            let read = words.iter().any(|word| word == key.name()) || key.path == "optimizer.weight_decay";
            assert!(read, "nothing reads `{}`", key.path);
        }
    }

    #[test]
    fn a_whole_recipe_is_read() {
        let text = r#"
            base = "b"
            method = "qlora"
            [loss]
            name = "dpo"
            beta = 0.2
            [lora]
            rank = 3
            alpha = 5
            dropout = 0.1
            targets = ["q_proj"]
            variant = "dora"
            rank_pattern = { q_proj = 2 }
            alpha_pattern = { q_proj = 4 }
            [qlora]
            double_quant = false
            [train]
            epochs = 2
            steps = 7
            batch_size = 4
            micro_batch_size = 2
            sequence_length = 64
            packing = true
            shuffle = false
            learning_rate = 1e-3
            schedule = "linear"
            warmup_steps = 2
            warmup_ratio = 0.5
            max_grad_norm = 0
            seed = 1
            gradient_checkpointing = true
            offload_activations = true
            validation_fraction = 0.0
            validation_every = 5
            early_stop_patience = 2
            keep_best = false
            [data]
            too_long = "truncate"
            train_on = "all"
            drop_duplicates = true
            max_rows = 9
            [optimizer]
            name = "sgd"
            momentum = 0.9
            [checkpoint]
            every_steps = 3
            keep = 1
        "#;
        let r = parse(text).unwrap();
        assert_eq!((r.method, r.lora.variant, r.train.schedule), (Method::Qlora, Variant::Dora, Schedule::Linear));
        assert_eq!((r.lora.rank, r.train.steps, r.checkpoint.keep, r.data.max_rows), (3, Some(7), 1, Some(9)));
        assert_eq!(r.loss.parameters["beta"], 0.2);
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        let e = parse("[train]\nlearning_rat = 1").unwrap_err().to_string();
        assert_eq!(e, "unknown key `train.learning_rat`; did you mean `train.learning_rate`?");
        let e = parse("[train]\nrank = 1").unwrap_err().to_string();
        assert!(e.contains("did you mean `lora.rank`"), "{e}");
        let e = parse("[lora]\nrank = 1\nzzz = 2").unwrap_err().to_string();
        assert!(e.starts_with("unknown key `lora.zzz`"), "{e}");
    }

    #[test]
    fn bad_values_name_their_key() {
        for (text, part) in [
            ("[train]\nbatch_size = 0", "train.batch_size"),
            ("[train]\nbatch_size = \"x\"", "train.batch_size"),
            ("[train]\nschedule = \"step\"", "train.schedule"),
            ("[lora]\ndropout = 1.0", "lora.dropout"),
            ("method = \"prefix\"", "method"),
            ("[data]\ntoo_long = \"cut\"", "data.too_long"),
            ("[train]\noffload_activations = true", "train.gradient_checkpointing = true"),
        ] {
            let e = parse(text).unwrap_err().to_string();
            assert!(e.contains(part), "{text}: {e}");
        }
    }

    #[test]
    fn set_reads_toml_or_text() {
        let mut table = toml::Table::new();
        for a in ["loss.name=dpo", "loss.beta=0.1", "lora.targets=[\"q_proj\"]", "train.steps=5", "optimizer=sgd"] {
            set(&mut table, a).unwrap();
        }
        let r = Recipe::from_table(&table).unwrap();
        assert_eq!((r.loss.name.as_str(), r.optimizer.name.as_str(), r.train.steps), ("dpo", "sgd", Some(5)));
        assert!(set(&mut table, "novalue").is_err());
        assert!(set(&mut table, "a..b=1").is_err());
    }

    #[test]
    fn a_short_loss_name_keeps_the_table_below() {
        let mut lower: toml::Table = "[loss]\nname = \"dpo\"\nbeta = 0.3".parse().unwrap();
        crate::recipe::merge(&mut lower, &"loss = \"dpo\"".parse().unwrap());
        assert_eq!(Recipe::from_table(&lower).unwrap().loss.parameters["beta"], 0.3);
    }
}
