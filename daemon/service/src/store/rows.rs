//! How columns become fields. Rows are read by the names of their columns.

use std::path::{Path, PathBuf};

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::Serialize;
use serde::de::DeserializeOwned;

use finetuned_engine::ErrorKind;

use super::State;
use crate::error::{Error, Result};

/// A column that holds JSON.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromSql for Json<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Json<T>> {
        serde_json::from_str(value.as_str()?).map(Json).map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

impl<T: Serialize> ToSql for Json<&T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let text = serde_json::to_string(self.0);
        text.map(ToSqlOutput::from).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
    }
}

/// A column that holds a path.
pub struct PathText(pub PathBuf);

impl FromSql for PathText {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<PathText> {
        value.as_str().map(|text| PathText(text.into()))
    }
}

/// A path as it is stored.
///
/// # Errors
/// It is not UTF-8. Names of outputs come from job ids, and names in the inbox are
/// checked when they are listed, so this is about `state_dir` itself.
pub fn path_text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Error::bad_input(format!("{}: only UTF-8 paths can be stored", path.display())))
}

/// A column of milliseconds since 1970.
pub struct Milliseconds(pub u64);

impl FromSql for Milliseconds {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Milliseconds> {
        let ms = value.as_i64()?;
        u64::try_from(ms).map(Milliseconds).map_err(|_| FromSqlError::OutOfRange(ms))
    }
}

impl FromSql for State {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<State> {
        value.as_str()?.parse().map_err(|error: String| FromSqlError::Other(error.into()))
    }
}

impl ToSql for State {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.name().into())
    }
}

/// A column that holds the name of an [`ErrorKind`].
pub struct KindName(pub ErrorKind);

impl FromSql for KindName {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<KindName> {
        // A later version may know more kinds.
        Ok(KindName(value.as_str()?.parse().unwrap_or(ErrorKind::Internal)))
    }
}

impl ToSql for KindName {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.to_string().into())
    }
}
