//! Rows that are one text.

use super::fields::string;
use super::{Content, Format, Layout, Row};
use crate::example::DataKind;
use crate::row_error::{RowError, RowResult};

/// `text`: all of it is trained.
pub(super) static TEXT: Format = Format {
    name: "text",
    kind: DataKind::Supervised,
    layout: Layout::Text,
    keys: &[&["text"]],
    reads: &[],
    lists: &[],
    fits: |_| true,
    read: text,
};

fn text(row: &Row) -> RowResult<Content> {
    match string(row, "text")? {
        "" => Err(RowError::empty("text")),
        text => Ok(Content::Text(text.to_owned())),
    }
}
