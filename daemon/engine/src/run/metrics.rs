//! metrics.jsonl: one object per step, appended as the run goes.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use crate::error::EngineError;
use crate::metrics::{LOSS, validation_name};
use crate::vocabulary::StepMetrics;

pub struct MetricsFile {
    file: File,
    path: PathBuf,
}

impl MetricsFile {
    /// Opens the file, keeping the lines of steps up to `keep` (a resumed run
    /// repeats the steps after its checkpoint) and dropping a line cut short.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(out: &Path, keep: Option<usize>) -> Result<MetricsFile, EngineError> {
        let path = out.join("metrics.jsonl");
        let fail = |source| EngineError::Io { path: path.clone(), source };
        let mut kept = Vec::new();
        if let Some(last) = keep {
            match File::open(&path) {
                Ok(file) => {
                    for line in BufReader::new(file).lines() {
                        let line = line.map_err(&fail)?;
                        let step =
                            serde_json::from_str::<serde_json::Value>(&line).ok().and_then(|v| v["step"].as_u64());
                        if step.is_some_and(|step| step as usize <= last) {
                            kept.push(line);
                        }
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(fail(e)),
            }
        }
        let text: String = kept.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
        finetuned_formats::durable::write_file(&path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path).map_err(&fail)?;
        Ok(MetricsFile { file, path })
    }

    /// Writes the line of step 0: the validation loss and the other numbers of the
    /// validation, before any update.
    pub fn start(&mut self, validation_loss: f64, metrics: &[(String, f64)]) -> Result<(), EngineError> {
        let mut line = serde_json::Map::from_iter([("step".to_string(), 0.into())]);
        line.insert(LOSS.validation_name(), validation_loss.into());
        line.extend(of_validation(metrics));
        self.line(&serde_json::Value::Object(line).to_string())
    }

    pub fn step(&mut self, metrics: &StepMetrics) -> Result<(), EngineError> {
        let text = serde_json::to_string(metrics).map_err(EngineError::json("a step"))?;
        self.line(&text)
    }

    fn line(&mut self, text: &str) -> Result<(), EngineError> {
        // One write per line, so that a reader never sees half of one.
        self.file.write_all(format!("{text}\n").as_bytes()).map_err(EngineError::io(&self.path))
    }
}

/// The numbers of a validation, as metrics.jsonl names them:
/// `validation_rewards/accuracies`, ….
pub fn of_validation(metrics: &[(String, f64)]) -> impl Iterator<Item = (String, serde_json::Value)> + '_ {
    metrics.iter().map(|(name, value)| (validation_name(name), (*value).into()))
}

/// The steps that a folder's metrics.jsonl holds, for reports.
///
/// # Errors
/// The file cannot be read.
pub fn read(out: &Path) -> Result<Vec<serde_json::Value>, EngineError> {
    let path = out.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).map_err(EngineError::io(&path))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}
