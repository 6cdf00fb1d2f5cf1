//! What the tests of whole runs share: a dataset with something to learn, a
//! recipe, an observer that stops.

use std::path::{Path, PathBuf};

use finetuned_engine::recipe::{self, Recipe};
use finetuned_engine::{Control, Event, Observer, Outcome, TrainRequest, train};

use super::base;

/// Records events; stops or cancels after a step.
#[derive(Default)]
pub struct Watcher {
    pub events: Vec<Event>,
    pub step: usize,
    pub stop_after: Option<usize>,
    pub cancel_after: Option<usize>,
}

impl Observer for Watcher {
    fn event(&mut self, event: &Event) {
        if let Event::Step(metrics) = event {
            self.step = metrics.step;
        }
        self.events.push(event.clone());
    }

    fn control(&mut self) -> Control {
        if self.cancel_after.is_some_and(|s| self.step >= s) {
            Control::Cancel
        } else if self.stop_after.is_some_and(|s| self.step >= s) {
            Control::Stop
        } else {
            Control::Continue
        }
    }
}

/// Rows that repeat a pattern, so that there is something to learn.
pub fn dataset(folder: &Path, rows: usize) -> PathBuf {
    let path = folder.join("rows.jsonl");
    let line = |i: usize| {
        let ids: Vec<usize> = (0..14 + i % 5).map(|t| 6 + (i % 7 * 11 + t * 3) % 300).collect();
        let labels: Vec<i64> = ids.iter().enumerate().map(|(t, id)| if t < 4 { -100 } else { *id as i64 }).collect();
        format!("{{\"input_ids\": {ids:?}, \"labels\": {labels:?}}}\n")
    };
    std::fs::write(&path, (0..rows).map(line).collect::<String>()).expect("dataset");
    path
}

pub fn recipe(settings: &[&str]) -> Recipe {
    let mut table = toml::Table::new();
    for setting in ["train.steps=12", "train.batch_size=4", "train.learning_rate=5e-3", "checkpoint.every_steps=4"]
        .iter()
        .chain(settings)
    {
        recipe::set(&mut table, setting).expect("setting");
    }
    Recipe::from_table(&table).expect("recipe")
}

pub fn request(folder: &Path, out: &str, settings: &[&str]) -> TrainRequest {
    TrainRequest {
        data: dataset(folder, 40),
        validation: None,
        adapter: None,
        out: folder.join(out),
        recipe: Recipe { base: base("llama"), ..recipe(settings) },
        device: "cpu".into(),
        fresh: false,
        threads: Some(2),
        plugins: Vec::new(),
        accept_plugin_change: false,
    }
}

pub fn run(request: &TrainRequest) -> (Outcome, Vec<Event>) {
    let mut watcher = Watcher::default();
    let outcome = train(request, &mut watcher).expect("a finished run");
    (outcome, watcher.events)
}
