//! Numbers that a row has beside what its format says: the columns that a loss
//! asks for by name, and the reward.

use std::collections::BTreeSet;

use finetuned_plugin_api::suggest::nearest;
use serde_json::Value;

use crate::format::Row;
use crate::row_error::{RowError, RowResult};

/// The key of a row's reward.
const REWARD: &str = "reward";

/// The columns that are asked for, and what was met of them in a file.
pub(crate) struct Columns<'a> {
    names: &'a [String],
    /// As long as `names`: whether some row has the column.
    met: Vec<bool>,
    /// Keys of the rows that are not asked for: what a misspelt name may mean.
    others: BTreeSet<String>,
}

impl<'a> Columns<'a> {
    pub fn new(names: &'a [String]) -> Self {
        Self { names, met: vec![false; names.len()], others: BTreeSet::new() }
    }

    /// Remembers which columns a row has.
    pub fn note(&mut self, row: &Row) {
        for (name, met) in self.names.iter().zip(&mut self.met) {
            *met |= row.contains_key(name);
        }
        if self.met.contains(&false) {
            let new = |key: &&String| !self.others.contains(*key) && !self.names.contains(key);
            let new: Vec<String> = row.keys().filter(new).cloned().collect();
            self.others.extend(new);
        }
    }

    /// A row's numbers in the columns, in the order of their names.
    ///
    /// # Errors
    /// The column that the row lacks, or that holds something else than a number.
    pub fn read(names: &[String], row: &Row) -> RowResult<Vec<f64>> {
        let read = |name: &String| match row.get(name) {
            None => Err(RowError::MissingColumn(name.clone())),
            Some(value) => number(value).ok_or_else(|| RowError::value(name, value, "a number")),
        };
        names.iter().map(read).collect()
    }

    /// The first column that no row has, with the nearest key that the rows have.
    pub fn absent(&self) -> Option<(&str, Option<&str>)> {
        let at = self.met.iter().position(|met| !met)?;
        let name = self.names.get(at)?;
        Some((name, nearest(name, self.others.iter().map(String::as_str))))
    }
}

/// A finite number, also one that is written as text: a file without types has
/// only text.
fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_f64(),
    };
    number.filter(|number: &f64| number.is_finite())
}

/// The row's reward. Another value than a number is none: the key is not part of
/// any format, and may mean something else.
pub(crate) fn reward(row: &Row) -> Option<f64> {
    row.get(REWARD).and_then(number)
}
