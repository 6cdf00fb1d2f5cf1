//! run.json: which run a folder holds, and how it ended.

use std::path::Path;

use finetuned_data::DatasetReport;
use finetuned_formats::{ModelFiles, durable};
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::plugins::used::UsedPlugin;
use crate::recipe::KEYS;
use crate::vocabulary::{Summary, TrainRequest};

const FILE: &str = "run.json";

/// Everything that makes a run what it is. Two runs of one identity on one
/// device give the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The recipe but for its checkpoint section, which changes no result.
    pub recipe: serde_json::Value,
    pub model: String,
    pub data: String,
    pub validation: Option<String>,
    pub adapter: Option<String>,
}

impl Identity {
    pub fn of(request: &TrainRequest, files: &ModelFiles, report: &DatasetReport) -> Result<Identity, EngineError> {
        let mut recipe = serde_json::to_value(&request.recipe).map_err(EngineError::json("a run"))?;
        if let Some(map) = recipe.as_object_mut() {
            map.remove("checkpoint");
            map.remove("base");
        }
        let adapter = match &request.adapter {
            Some(folder) => Some(durable::sha256_file(&folder.join("adapter_model.safetensors"))?),
            None => None,
        };
        Ok(Identity {
            recipe,
            model: files.fingerprint()?,
            data: report.sha256.clone(),
            validation: report.validation_sha256.clone(),
            adapter,
        })
    }

    /// What differs, in words; None if nothing does.
    pub fn difference(&self, new: &Identity) -> Option<String> {
        let mut found = Vec::new();
        differences("", &self.recipe, &new.recipe, &mut found);
        for (name, old, new) in [
            ("the base model", Some(&self.model), Some(&new.model)),
            ("the dataset", Some(&self.data), Some(&new.data)),
            ("the validation file", self.validation.as_ref(), new.validation.as_ref()),
            ("the starting adapter", self.adapter.as_ref(), new.adapter.as_ref()),
        ] {
            if old != new {
                found.push(format!("{name} is another"));
            }
        }
        if found.is_empty() { None } else { Some(found.join(", ")) }
    }
}

/// Whether a run may go on with another value of this key: one that ran out of
/// memory may go on with what trades memory for time.
fn changes_nothing(path: &str) -> bool {
    KEYS.iter().any(|key| key.path == path && !key.changes_result)
}

fn differences(path: &str, old: &serde_json::Value, new: &serde_json::Value, found: &mut Vec<String>) {
    match (old, new) {
        _ if changes_nothing(path) => {}
        (serde_json::Value::Object(a), serde_json::Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let nothing = serde_json::Value::Null;
                differences(&inner, a.get(key).unwrap_or(&nothing), b.get(key).unwrap_or(&nothing), found);
            }
        }
        _ if old != new => found.push(format!("{path} was {old}, is {new}")),
        _ => {}
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunFile {
    pub identity: Identity,
    pub micro_batch_size: usize,
    /// The objective and the optimizer; empty in files of the first version.
    #[serde(default)]
    pub plugins: Vec<UsedPlugin>,
    /// Present once the run is finished.
    pub summary: Option<Summary>,
}

impl RunFile {
    /// None if the folder holds no run.
    ///
    /// # Errors
    /// A file that cannot be read or is not what this program writes.
    pub fn read(out: &Path) -> Result<Option<RunFile>, EngineError> {
        let path = out.join(FILE);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| EngineError::Damaged {
                path,
                reason: format!(
                    "it is not a run file of this version ({e}); give another --out, or --fresh to start over"
                ),
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(EngineError::Io { path, source }),
        }
    }

    pub fn write(&self, out: &Path) -> Result<(), EngineError> {
        let bytes = serde_json::to_vec_pretty(self).map_err(EngineError::json("a run"))?;
        durable::write_file(&out.join(FILE), &bytes)?;
        Ok(())
    }

    pub fn remove(out: &Path) -> Result<(), EngineError> {
        let path = out.join(FILE);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(EngineError::Io { path, source }),
            _ => Ok(()),
        }
    }
}
