//! What a user can set of a plugin: stated, checked, explained.

use serde_json::{Map, Value};

use crate::PluginError;
use crate::suggest::nearest;

/// The type of a parameter's value.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParameterType {
    Number,
    Integer,
    Boolean,
    Text,
    /// One of these words.
    Choice(Vec<String>),
}

/// One thing that can be set.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Parameter {
    /// The key in the recipe's table.
    pub name: String,
    #[serde(rename = "type")]
    pub kind: ParameterType,
    /// `null`: it may be left out, and has no value then.
    pub default: Value,
    /// Inclusive, for numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<f64>,
    /// Inclusive, for numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum: Option<f64>,
    /// One line, with the unit where there is one.
    pub help: String,
}

impl Parameter {
    fn new(name: &str, kind: ParameterType, default: Value, help: &str) -> Parameter {
        Parameter { name: name.into(), kind, default, minimum: None, maximum: None, help: help.into() }
    }

    pub fn number(name: &str, default: f64, help: &str) -> Parameter {
        Parameter::new(name, ParameterType::Number, default.into(), help)
    }

    /// A number that may be left out.
    pub fn optional_number(name: &str, help: &str) -> Parameter {
        Parameter::new(name, ParameterType::Number, Value::Null, help)
    }

    pub fn integer(name: &str, default: i64, help: &str) -> Parameter {
        Parameter::new(name, ParameterType::Integer, default.into(), help)
    }

    pub fn boolean(name: &str, default: bool, help: &str) -> Parameter {
        Parameter::new(name, ParameterType::Boolean, default.into(), help)
    }

    pub fn text(name: &str, default: &str, help: &str) -> Parameter {
        Parameter::new(name, ParameterType::Text, default.into(), help)
    }

    pub fn choice(name: &str, choices: &[&str], default: &str, help: &str) -> Parameter {
        let choices = choices.iter().map(|choice| choice.to_string()).collect();
        Parameter::new(name, ParameterType::Choice(choices), default.into(), help)
    }

    /// Within these bounds, both included.
    pub fn range(mut self, minimum: f64, maximum: f64) -> Parameter {
        self.minimum = minimum.is_finite().then_some(minimum);
        self.maximum = maximum.is_finite().then_some(maximum);
        self
    }

    /// What a value must be, in words: `a number from 0 to 1`.
    pub fn expected(&self) -> String {
        let what = match &self.kind {
            ParameterType::Number => "a number".to_string(),
            ParameterType::Integer => "a whole number".to_string(),
            ParameterType::Boolean => "true or false".to_string(),
            ParameterType::Text => "text".to_string(),
            ParameterType::Choice(choices) => format!("one of {}", choices.join(", ")),
        };
        match (self.minimum, self.maximum) {
            (Some(low), Some(high)) => format!("{what} from {low} to {high}"),
            (Some(low), None) => format!("{what} of at least {low}"),
            (None, Some(high)) => format!("{what} of at most {high}"),
            (None, None) => what,
        }
    }

    fn accepts(&self, value: &Value) -> bool {
        let in_range = |x: f64| {
            x.is_finite() && self.minimum.is_none_or(|low| x >= low) && self.maximum.is_none_or(|high| x <= high)
        };
        match &self.kind {
            ParameterType::Number => value.as_f64().is_some_and(in_range),
            ParameterType::Integer => value.as_i64().is_some_and(|x| in_range(x as f64)),
            ParameterType::Boolean => value.is_boolean(),
            ParameterType::Text => value.is_string(),
            ParameterType::Choice(choices) => value.as_str().is_some_and(|word| choices.iter().any(|c| c == word)),
        }
    }
}

/// All that can be set of one plugin.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Parameters(pub Vec<Parameter>);

impl Parameters {
    /// The values to create a plugin with: those given, checked, over the
    /// defaults.
    ///
    /// # Errors
    /// The first key that is unknown (with the nearest known one) or whose
    /// value does not fit.
    pub fn check(&self, plugin: &str, given: &Map<String, Value>) -> Result<Values, PluginError> {
        for key in given.keys() {
            if !self.0.iter().any(|parameter| &parameter.name == key) {
                let known = || self.0.iter().map(|parameter| parameter.name.as_str());
                return Err(PluginError::UnknownParameter {
                    plugin: plugin.into(),
                    key: key.clone(),
                    nearest: nearest(key, known()).map(str::to_string),
                    known: known().map(str::to_string).collect(),
                });
            }
        }
        let mut values = Map::new();
        for parameter in &self.0 {
            let value = match given.get(&parameter.name) {
                Some(value) if value.is_null() && parameter.default.is_null() => Value::Null,
                Some(value) if parameter.accepts(value) => value.clone(),
                Some(value) => {
                    return Err(PluginError::Parameter {
                        plugin: plugin.into(),
                        key: parameter.name.clone(),
                        expected: parameter.expected(),
                        got: value.to_string(),
                    });
                }
                None => parameter.default.clone(),
            };
            values.insert(parameter.name.clone(), value);
        }
        Ok(Values(values))
    }
}

/// Checked values, one for each stated parameter.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Values(pub Map<String, Value>);

impl Values {
    /// # Errors
    /// When the plugin asks for a parameter that it did not state, or by
    /// another type: a mistake of its author.
    pub fn number(&self, name: &str) -> Result<f64, PluginError> {
        self.get(name, "number", Value::as_f64)
    }

    /// `None` where an optional number was left out.
    pub fn optional_number(&self, name: &str) -> Result<Option<f64>, PluginError> {
        match self.0.get(name) {
            Some(Value::Null) => Ok(None),
            _ => self.number(name).map(Some),
        }
    }

    pub fn integer(&self, name: &str) -> Result<i64, PluginError> {
        self.get(name, "integer", Value::as_i64)
    }

    pub fn boolean(&self, name: &str) -> Result<bool, PluginError> {
        self.get(name, "boolean", Value::as_bool)
    }

    pub fn text(&self, name: &str) -> Result<&str, PluginError> {
        self.get(name, "text", Value::as_str)
    }

    fn get<'a, T>(
        &'a self,
        name: &str,
        kind: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<T, PluginError> {
        self.0
            .get(name)
            .and_then(read)
            .ok_or_else(|| PluginError::Failed(format!("the plugin states no {kind} parameter '{name}'")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stated() -> Parameters {
        Parameters(vec![
            Parameter::number("beta", 0.1, "").range(0.0, f64::INFINITY),
            Parameter::choice("variant", &["sigmoid", "hinge"], "sigmoid", ""),
            Parameter::optional_number("rpo_alpha", ""),
        ])
    }

    fn check(text: &str) -> Result<Values, String> {
        let given: Map<String, Value> = serde_json::from_str(text).unwrap();
        stated().check("dpo", &given).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_fill_what_is_not_given() {
        let values = check(r#"{"beta": 2}"#).unwrap();
        assert_eq!(values.number("beta").unwrap(), 2.0);
        assert_eq!(values.text("variant").unwrap(), "sigmoid");
        assert_eq!(values.optional_number("rpo_alpha").unwrap(), None);
    }

    #[test]
    fn a_wrong_key_or_value_is_refused_with_the_remedy() {
        assert_eq!(check(r#"{"bata": 1}"#).unwrap_err(), "'dpo' has no parameter 'bata' (did you mean 'beta'?)");
        assert_eq!(
            check(r#"{"gamma_ray": 1}"#).unwrap_err(),
            "'dpo' has no parameter 'gamma_ray'; it has beta, variant, rpo_alpha"
        );
        assert_eq!(
            check(r#"{"beta": -1}"#).unwrap_err(),
            "parameter 'beta' of 'dpo': expected a number of at least 0, got -1"
        );
        assert_eq!(
            check(r#"{"variant": "hing"}"#).unwrap_err(),
            "parameter 'variant' of 'dpo': expected one of sigmoid, hinge, got \"hing\""
        );
        assert!(check(r#"{"beta": "0.1"}"#).is_err());
    }
}
