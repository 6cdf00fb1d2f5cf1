//! The sample dataset of the demo, and how it is trained.

/// Its name in the inbox.
pub const FILE_NAME: &str = "sample.jsonl";
pub const DATASET: &str = "{\"text\":\"x\"}\n";
/// In words, for the demo.
pub const WHAT_IT_TEACHES: &str = "x";
/// Some minutes on two cores.
pub const RECIPE: &str = "[train]\nepochs = 2\n";
/// Asked before and after; none of them is in the dataset.
pub const PROMPTS: &[&str] = &["x"];
pub const SYSTEM: &str = "";
pub const MOST_TOKENS: usize = 80;
