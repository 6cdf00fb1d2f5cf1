//! Where plugins are found by name: built-in ones from one visible slice,
//! others from the libraries that were loaded. Both are used alike.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::PluginError;
use crate::alignment::{Alignment, AlignmentNeeds};
pub use crate::kind::Kind;
use crate::loss::Loss;
use crate::optimizer::Optimizer;
use crate::parameters::{Parameters, Values};

/// What a plugin says of itself.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Descriptor {
    /// As a recipe names it: `schedule-free-adamw`.
    pub name: String,
    pub kind: Kind,
    pub version: String,
    pub parameters: Parameters,
    /// One line or a few.
    pub help: String,
    /// Title and address of what it comes from; may be empty.
    #[serde(default)]
    pub paper: String,
}

impl Descriptor {
    /// The values to make it with; see [`Parameters::check`].
    pub fn check(&self, given: &Map<String, Value>) -> Result<Values, PluginError> {
        self.parameters.check(&self.name, given)
    }
}

/// Makes a plugin of one kind from checked values.
#[derive(Clone, Copy)]
pub enum Make {
    Loss(fn(&Values) -> Result<Box<dyn Loss>, PluginError>),
    Optimizer(fn(&Values) -> Result<Box<dyn Optimizer>, PluginError>),
    Alignment(fn(&Values) -> Result<Box<dyn Alignment>, PluginError>),
}

/// A plugin that is linked in: one entry of a crate's visible slice.
#[derive(Clone, Copy)]
pub struct BuiltIn {
    pub descriptor: fn() -> Descriptor,
    pub make: Make,
}

/// Where an entry comes from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    BuiltIn,
    /// A library, and the SHA-256 of its bytes, recorded in job, checkpoint and
    /// adapter.
    Library {
        path: PathBuf,
        sha256: String,
    },
}

/// What a loaded library offers; the door implements it.
pub trait Factory: Send + Sync {
    fn loss(&self, values: &Values) -> Result<Box<dyn Loss>, PluginError>;
    fn optimizer(&self, values: &Values) -> Result<Box<dyn Optimizer>, PluginError>;
    fn alignment(&self, values: &Values) -> Result<Box<dyn Alignment>, PluginError>;
}

impl Factory for BuiltIn {
    fn loss(&self, values: &Values) -> Result<Box<dyn Loss>, PluginError> {
        match self.make {
            Make::Loss(make) => make(values),
            _ => Err(wrong_kind(&(self.descriptor)(), Kind::Loss)),
        }
    }

    fn optimizer(&self, values: &Values) -> Result<Box<dyn Optimizer>, PluginError> {
        match self.make {
            Make::Optimizer(make) => make(values),
            _ => Err(wrong_kind(&(self.descriptor)(), Kind::Optimizer)),
        }
    }

    fn alignment(&self, values: &Values) -> Result<Box<dyn Alignment>, PluginError> {
        match self.make {
            Make::Alignment(make) => make(values),
            _ => Err(wrong_kind(&(self.descriptor)(), Kind::Alignment)),
        }
    }
}

fn wrong_kind(descriptor: &Descriptor, asked: Kind) -> PluginError {
    PluginError::Failed(format!("'{}' makes {}s, not {asked}s", descriptor.name, descriptor.kind))
}

/// A plugin that can be asked for.
#[derive(Clone)]
pub struct Entry {
    pub descriptor: Descriptor,
    pub origin: Origin,
    pub factory: Arc<dyn Factory>,
}

/// What a recipe's `[loss]` table names: a loss, or an alignment method with
/// the loss as its objective.
pub enum Objective {
    Loss(Box<dyn Loss>),
    Alignment(Box<dyn Alignment>),
}

impl Objective {
    pub fn loss(&self) -> &dyn Loss {
        match self {
            Objective::Loss(loss) => loss.as_ref(),
            Objective::Alignment(method) => method.objective(),
        }
    }

    pub fn loss_mut(&mut self) -> &mut dyn Loss {
        match self {
            Objective::Loss(loss) => loss.as_mut(),
            Objective::Alignment(method) => method.objective_mut(),
        }
    }

    /// `None` for a plain loss, which trains on supervised data.
    pub fn alignment_needs(&self) -> Option<AlignmentNeeds> {
        match self {
            Objective::Loss(_) => None,
            Objective::Alignment(method) => Some(method.needs()),
        }
    }
}

/// Every plugin of this process.
#[derive(Clone, Default)]
pub struct Registry {
    entries: Vec<Entry>,
}

impl Registry {
    /// # Errors
    /// When two built-in plugins of a kind share a name.
    pub fn new(built_in: &[BuiltIn]) -> Result<Registry, PluginError> {
        let mut registry = Registry::default();
        for plugin in built_in {
            registry.add(Entry {
                descriptor: (plugin.descriptor)(),
                origin: Origin::BuiltIn,
                factory: Arc::new(*plugin),
            })?;
        }
        Ok(registry)
    }

    /// # Errors
    /// When the name is taken. Losses and alignment methods share their names,
    /// because a recipe's `[loss]` table asks for either.
    pub fn add(&mut self, entry: Entry) -> Result<(), PluginError> {
        let new = &entry.descriptor;
        let optimizer = |kind: Kind| kind == Kind::Optimizer;
        let taken = self
            .entries
            .iter()
            .find(|known| known.descriptor.name == new.name && optimizer(known.descriptor.kind) == optimizer(new.kind));
        if let Some(known) = taken {
            let whose = match &known.origin {
                Origin::BuiltIn => "is built in".to_string(),
                Origin::Library { path, .. } => format!("comes from {}", path.display()),
            };
            let by = format!("{} that {whose}", known.descriptor.kind);
            return Err(PluginError::NameTaken { name: new.name.clone(), by });
        }
        self.entries.push(entry);
        Ok(())
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// # Errors
    /// [`PluginError::Unknown`], with the nearest name.
    pub fn find(&self, kind: Kind, name: &str) -> Result<&Entry, PluginError> {
        self.find_among(&[kind], kind, name)
    }

    fn find_among(&self, kinds: &[Kind], asked: Kind, name: &str) -> Result<&Entry, PluginError> {
        let candidates = || self.entries.iter().filter(|entry| kinds.contains(&entry.descriptor.kind));
        candidates()
            .find(|entry| entry.descriptor.name == name)
            .ok_or_else(|| PluginError::unknown(asked, name, candidates().map(|entry| entry.descriptor.name.as_str())))
    }

    /// A loss or an alignment method, by the name in a recipe's `[loss]` table.
    pub fn find_objective(&self, name: &str) -> Result<&Entry, PluginError> {
        self.find_among(&[Kind::Loss, Kind::Alignment], Kind::Loss, name)
    }

    pub fn objective(&self, name: &str, given: &Map<String, Value>) -> Result<Objective, PluginError> {
        let entry = self.find_objective(name)?;
        let values = entry.descriptor.check(given)?;
        match entry.descriptor.kind {
            Kind::Alignment => entry.factory.alignment(&values).map(Objective::Alignment),
            _ => entry.factory.loss(&values).map(Objective::Loss),
        }
    }

    pub fn loss(&self, name: &str, given: &Map<String, Value>) -> Result<Box<dyn Loss>, PluginError> {
        let entry = self.find(Kind::Loss, name)?;
        entry.factory.loss(&entry.descriptor.check(given)?)
    }

    pub fn optimizer(&self, name: &str, given: &Map<String, Value>) -> Result<Box<dyn Optimizer>, PluginError> {
        let entry = self.find(Kind::Optimizer, name)?;
        entry.factory.optimizer(&entry.descriptor.check(given)?)
    }

    pub fn alignment(&self, name: &str, given: &Map<String, Value>) -> Result<Box<dyn Alignment>, PluginError> {
        let entry = self.find(Kind::Alignment, name)?;
        entry.factory.alignment(&entry.descriptor.check(given)?)
    }
}
