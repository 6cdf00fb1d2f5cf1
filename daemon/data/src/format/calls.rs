//! Tools, and calls of them, from every form that they come in to one: a list of
//! `{"type": "function", "function": {"name", "arguments": {…}}}`.

use serde_json::{Map, Value};

use super::Row;
use super::fields::kind_of;
use crate::json::json;
use crate::row_error::{CallFault, RowError, RowResult};

/// The calls of a message: a list, one object, or JSON of either.
///
/// # Errors
/// The call that cannot be read, by its number.
pub(super) fn calls(value: &Value, key: &'static str) -> RowResult<Vec<Value>> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(text) if text.trim().is_empty() => Ok(Vec::new()),
        Value::String(text) => match json(text.trim()) {
            Ok(value @ (Value::Array(_) | Value::Object(_))) => calls(&value, key),
            _ => Err(RowError::NotCalls(key)),
        },
        Value::Object(map) => Ok(vec![call(map, 1)?]),
        Value::Array(items) => {
            let read = |(index, item): (usize, &Value)| match item {
                Value::Object(map) => call(map, index + 1),
                Value::String(text) => match json(text.trim()) {
                    Ok(Value::Object(map)) => call(&map, index + 1),
                    _ => Err(RowError::Call { number: index + 1, fault: CallFault::NotAnObject("a string") }),
                },
                other => Err(RowError::Call { number: index + 1, fault: CallFault::NotAnObject(kind_of(other)) }),
            };
            items.iter().enumerate().map(read).collect()
        }
        _ => Err(RowError::NotCalls(key)),
    }
}

/// One call. `number` counts from 1.
fn call(map: &Map<String, Value>, number: usize) -> RowResult<Value> {
    let fault = |fault| RowError::Call { number, fault };
    let named = |map: &Map<String, Value>| {
        let name = map.get("name").and_then(Value::as_str);
        name.is_some_and(|name| !name.trim().is_empty())
    };
    if let Some(Value::Object(function)) = map.get("function") {
        if !named(function) {
            return Err(fault(CallFault::NoName));
        }
        let given = function.get("arguments").or(function.get("parameters"));
        let arguments = arguments(given).map_err(|problem| fault(CallFault::Arguments(problem)))?;
        let mut function = function.clone();
        function.remove("parameters");
        function.insert("arguments".into(), arguments);
        let mut call = map.clone();
        call.insert("function".into(), Value::Object(function));
        return Ok(Value::Object(call));
    }
    if !named(map) {
        return Err(fault(CallFault::NoName));
    }
    let given = ["arguments", "parameters", "args", "input"].iter().find_map(|key| map.get(*key));
    let arguments = arguments(given).map_err(|problem| fault(CallFault::Arguments(problem)))?;
    let function = Map::from_iter([("name".to_owned(), map["name"].clone()), ("arguments".to_owned(), arguments)]);
    let id = map.get("id").map(|id| ("id".to_owned(), id.clone()));
    let kind = ("type".to_owned(), Value::from("function"));
    Ok(Value::Object(id.into_iter().chain([kind, ("function".to_owned(), Value::Object(function))]).collect()))
}

/// A call's arguments as an object. OpenAI's format keeps them as a string of JSON,
/// and some sets encode that once more; templates would write the quotes and escapes.
/// No arguments, and an empty string, are an empty object.
///
/// # Errors
/// What they are instead.
fn arguments(value: Option<&Value>) -> Result<Value, String> {
    let read = |text: &str| match text.trim() {
        "" => Ok(Value::Object(Map::new())),
        text => json(text).map_err(|error| error.to_string()),
    };
    let mut value = match value {
        None | Some(Value::Null) => return Ok(Value::Object(Map::new())),
        Some(value) => value.clone(),
    };
    for _ in 0..2 {
        if let Value::String(text) = &value {
            value = read(text)?;
        }
    }
    if value.is_object() { Ok(value) } else { Err(format!("{} was given", kind_of(&value))) }
}

/// The tools that a row offers: `tools`, or OpenAI's earlier `functions`; a list, JSON
/// of a list, or a list of JSON.
///
/// # Errors
/// What is no tool, by its number.
pub(super) fn tools(row: &Row) -> RowResult<Option<Value>> {
    let read = |key: &'static str| match row.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) => Ok(items.clone()),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(Vec::new()),
        Some(Value::String(text)) => match json(text.trim()) {
            Ok(Value::Array(items)) => Ok(items),
            _ => Err(RowError::NotAJsonList(key)),
        },
        Some(other) => Err(RowError::value(key, kind_of(other), "a list")),
    };
    let mut tools = Vec::new();
    for key in ["tools", "functions"] {
        if tools.is_empty() {
            tools = read(key)?;
        }
    }
    let read = |(index, tool): (usize, Value)| {
        let tool = match &tool {
            Value::String(text) => json(text.trim()).unwrap_or(tool),
            _ => tool,
        };
        let name = tool.get("function").unwrap_or(&tool).get("name");
        // Built-in tools of a service have a type and no name.
        let is_tool =
            name.is_some_and(Value::is_string) || (name.is_none() && tool.get("type").is_some_and(Value::is_string));
        if is_tool && tool.is_object() { Ok(tool) } else { Err(RowError::NotATool { number: index + 1 }) }
    };
    let tools: Vec<Value> = tools.into_iter().enumerate().map(read).collect::<RowResult<_>>()?;
    Ok((!tools.is_empty()).then_some(Value::Array(tools)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_usual_form_is_one_form() {
        let one = json!([{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]);
        for value in [
            one.clone(),
            json!([{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]),
            json!([{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "\"{\\\"a\\\": 1}\""}}]),
            json!([{"id": "c1", "name": "f", "arguments": {"a": 1}}]),
            json!({"id": "c1", "name": "f", "parameters": "{\"a\": 1}"}),
            json!(one.to_string()),
            json!([one[0].to_string()]),
        ] {
            assert_eq!(Value::Array(calls(&value, "tool_calls").unwrap()), one, "{value}");
        }
        for empty in [json!(""), json!(null), json!("{}")] {
            let call = json!([{"function": {"name": "f", "arguments": empty}}]);
            assert_eq!(calls(&call, "tool_calls").unwrap()[0]["function"]["arguments"], json!({}), "{empty}");
        }
        assert!(calls(&json!([]), "tool_calls").unwrap().is_empty());
    }

    #[test]
    fn what_is_no_call_is_refused() {
        for (value, expected) in [
            (json!("get_weather"), "`tool_calls` is no list of calls, and no JSON of one"),
            (json!(["get_weather"]), "call 1 is a string: expected an object"),
            (
                json!([{"function": {"name": "f", "arguments": "{\"town\": "}}]),
                "call 1: its arguments are no JSON object (EOF while parsing a value at line 1 column 8)",
            ),
            (
                json!([{"function": {"name": "f", "arguments": [1]}}]),
                "call 1: its arguments are no JSON object (a list was given)",
            ),
            (
                json!([{"function": {"name": "f", "arguments": "{\"n\": 123456789012345678901}"}}]),
                "call 1: its arguments are no JSON object (a whole number of more than 19 digits would be rounded: \
                 write it as a string)",
            ),
            (json!([{"function": {"arguments": {}}}]), "call 1 has no `name`"),
        ] {
            assert_eq!(calls(&value, "tool_calls").unwrap_err().to_string(), expected, "{value}");
        }
    }

    #[test]
    fn tools_are_a_list_in_every_form() {
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
        let row = |value: Value| value.as_object().unwrap().clone();
        for value in [
            json!({"tools": [tool]}),
            json!({"tools": json!([tool]).to_string()}),
            json!({"tools": [tool.to_string()]}),
            json!({"functions": [tool], "tools": null}),
        ] {
            assert_eq!(tools(&row(value.clone())).unwrap(), Some(json!([tool])), "{value}");
        }
        for value in [
            json!({"tools": "[not json"}),
            json!({"tools": ["f"]}),
            json!({"tools": 1}),
            json!({"tools": [{"name": 1}]}),
        ] {
            assert!(tools(&row(value.clone())).is_err(), "{value}");
        }
        assert_eq!(tools(&row(json!({"tools": "[]"}))).unwrap(), None);
    }
}
