//! From a file to examples and a report.
use crate::error::Result;
use crate::{ChatTokenizer, DataOptions, DatasetReport, Examples};
use std::path::Path;

/// A dataset ready to train on.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// What is trained on.
    pub train: Examples,
    /// What was set aside: the same kind, perhaps empty.
    pub validation: Examples,
    /// What was found.
    pub report: DatasetReport,
}

/// Reads, renders and tokenises a dataset.
pub fn prepare(
    _data: &Path,
    _validation: Option<&Path>,
    _tokenizer: &ChatTokenizer,
    options: &DataOptions,
) -> Result<Prepared> {
    options.check()?;
    Ok(Prepared {
        train: Examples::Supervised(Vec::new()),
        validation: Examples::Supervised(Vec::new()),
        report: DatasetReport::default(),
    })
}
