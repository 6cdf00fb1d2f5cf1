//! The keys as a JSON Schema, from which a form can be made.

use finetuned_engine::keys::{Key, Kind, Range, Section};
use serde_json::{Map, Value, json};

use super::keys::{RECIPE_SECTIONS, SECTIONS};

/// The schema of finetuned.toml; `properties.recipe` is that of a recipe.toml.
///
/// Each key has its type, range, default and help (`description`). Beyond JSON
/// Schema: `x-written-as` says how a text is written (`duration`, `bytes`, `path`),
/// `x-unit` what a number counts, `x-unset` what holds if the key is left out, and
/// `x-changes-result` is false if the key changes no bit of a run's result.
pub fn schema() -> Value {
    let mut schema = table(&SECTIONS, true);
    let recipe = table(&RECIPE_SECTIONS, false);
    insert(&mut schema, &["properties", "recipe"], recipe);
    insert(&mut schema, &["$schema"], "https://json-schema.org/draft/2020-12/schema".into());
    insert(&mut schema, &["title"], "finetuned.toml".into());
    schema
}

/// A table of sections; the keys of the section without a name are the table's own.
fn table(sections: &[Section], closed: bool) -> Value {
    let mut root = object(&[], closed);
    for section in sections {
        // A plugin's parameters are beside the keys of these tables.
        let mut properties = object(&section.about, section.name != "optimizer");
        for key in &section.keys {
            let target = if section.name.is_empty() { &mut root } else { &mut properties };
            insert(target, &["properties", key.name()], property(key));
        }
        match section.name.is_empty() {
            true => insert(&mut root, &["description"], section.about.join(" ").into()),
            false => insert(&mut root, &["properties", &section.name], properties),
        }
    }
    root
}

fn object(about: &[String], closed: bool) -> Value {
    let mut object = json!({ "type": "object", "description": about.join(" "), "properties": {} });
    if closed {
        insert(&mut object, &["additionalProperties"], false.into());
    }
    object
}

fn insert(object: &mut Value, path: &[&str], value: Value) {
    let mut at = object;
    for part in path {
        at = &mut at[*part];
    }
    *at = value;
}

fn property(key: &Key) -> Value {
    let mut property = kind(key.kind);
    property.insert("description".into(), key.help.join(" ").into());
    match key.default.as_deref().and_then(json_of_toml) {
        Some(default) => property.insert("default".into(), default),
        None => property.insert("x-unset".into(), key.unset.into()),
    };
    match key.range {
        Range::Any => {}
        // JSON Schema cannot compare durations, which are texts.
        Range::AtLeast(least) if key.kind == Kind::Duration => {
            property.insert("x-at-least-seconds".into(), least.into());
        }
        Range::AtLeast(least) => {
            property.insert("minimum".into(), least.into());
        }
        Range::Above(bound) => {
            property.insert("exclusiveMinimum".into(), bound.into());
        }
        Range::HalfOpen(least, bound) => {
            property.insert("minimum".into(), least.into());
            property.insert("exclusiveMaximum".into(), bound.into());
        }
        Range::Closed(least, most) => {
            property.insert("minimum".into(), least.into());
            property.insert("maximum".into(), most.into());
        }
    }
    if !key.unit.is_empty() {
        property.insert("x-unit".into(), key.unit.into());
    }
    if !key.changes_result {
        property.insert("x-changes-result".into(), false.into());
    }
    property.into()
}

/// The type of a value.
fn kind(kind: Kind) -> Map<String, Value> {
    let written = |how: &str| json!({ "type": "string", "x-written-as": how });
    let value = match kind {
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Whole => json!({ "type": "integer", "minimum": 0 }),
        Kind::Number => json!({ "type": "number" }),
        Kind::Text => json!({ "type": "string" }),
        Kind::Word(words) => json!({ "enum": words }),
        Kind::Names(word) => {
            json!({ "anyOf": [{ "const": word }, { "type": "array", "items": { "type": "string" } }] })
        }
        Kind::Table(of) => json!({ "type": "object", "additionalProperties": kind_value(*of) }),
        Kind::Plugin => {
            let table = json!({ "type": "object", "properties": { "name": { "type": "string" } } });
            json!({ "anyOf": [{ "type": "string" }, table] })
        }
        Kind::Path => written("path"),
        Kind::Paths => json!({ "anyOf": [written("path"), { "type": "array", "items": written("path") }] }),
        Kind::Duration => written("duration"),
        Kind::Bytes => json!({ "anyOf": [{ "type": "integer", "minimum": 0 }, written("bytes")] }),
    };
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn kind_value(of: Kind) -> Value {
    kind(of).into()
}

fn json_of_toml(text: &str) -> Option<Value> {
    let mut table = format!("value = {text}").parse::<toml::Table>().ok()?;
    serde_json::to_value(table.remove("value")?).ok()
}
