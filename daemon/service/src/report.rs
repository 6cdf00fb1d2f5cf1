//! The HTML report of a run.
/// Its name beside the adapter.
pub const FILE: &str = "report.html";
