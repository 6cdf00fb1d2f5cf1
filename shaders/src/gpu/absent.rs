//! GPUs in a build without the feature `gpu`: none.

use super::entry::{GpuEntry, GpuFacts};
use crate::error::{Result, TensorError};

/// A GPU as a device; there is no value of it in this build.
pub enum Gpu {}

impl Gpu {
    /// What the device says of itself.
    pub fn facts(&self) -> &GpuFacts {
        match *self {}
    }
}

/// All GPUs that this build can use: none.
pub fn list() -> Vec<GpuEntry> {
    Vec::new()
}

/// Opens a device of [`list`].
///
/// # Errors
/// Always [`TensorError::Absent`]: this build has no GPU code.
pub fn open(entry: &GpuEntry) -> Result<Gpu> {
    Err(TensorError::Absent { asked: entry.spec.clone(), reason: super::NOT_BUILT_IN.into() })
}
