//! The sample dataset of the demo, and how it is trained.

/// Its name in the inbox.
pub const FILE_NAME: &str = "repair-desk.jsonl";

/// 300 messages to a repair desk, each with the card that the desk files.
pub const DATASET: &str = include_str!("../../../config/samples/repair-desk.jsonl");

/// Messages of the same kind that are not in the dataset.
const UNSEEN: &str = include_str!("../../../config/samples/repair-desk-unseen.jsonl");

/// What it teaches, for the demo's output.
pub const WHAT_IT_TEACHES: &str = "customers' messages, answered with a card of four lines";

/// The recipe: some minutes on two cores.
pub const RECIPE: &str = "\
method = \"lora\"
[lora]
rank = 16
alpha = 32
[train]
epochs = 2
batch_size = 8
sequence_length = 256
learning_rate = 5e-4
schedule = \"cosine\"
warmup_ratio = 0.1
validation_fraction = 0.1
[checkpoint]
every_steps = 20
";

/// Tokens of the longest card, with room.
pub const MOST_TOKENS: usize = 64;

/// What is asked before and after.
pub fn prompts() -> Vec<String> {
    let rows = UNSEEN.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let asked =
        rows.filter_map(|row| row.pointer("/messages/0/content").and_then(|text| text.as_str()).map(str::to_string));
    asked.step_by(10).take(3).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompts_are_no_rows_of_the_dataset() {
        let prompts = prompts();
        assert_eq!(prompts.len(), 3);
        for prompt in &prompts {
            let quoted = serde_json::to_string(prompt).unwrap();
            assert!(!DATASET.contains(&quoted), "{prompt}");
        }
    }

    #[test]
    fn the_recipe_is_valid_and_the_rows_are_whole() {
        finetuned_engine::recipe::Recipe::from_table(&RECIPE.parse().unwrap()).unwrap();
        assert!(DATASET.lines().count() >= 200);
        for line in DATASET.lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(row["messages"].as_array().unwrap().last().unwrap()["role"], "assistant");
        }
    }
}
