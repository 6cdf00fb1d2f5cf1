//! What can go wrong in an operation: always named, always with what was
//! expected and what came.

/// An operation refused its input or could not get memory.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TensorError {
    /// Shapes that do not fit together.
    #[error("{op}: expected {expected}, got {got}")]
    Shape { op: &'static str, expected: String, got: String },
    /// A type the operation has no code for.
    #[error("{op}: cannot compute with {got}; it takes {expected}")]
    Type { op: &'static str, expected: &'static str, got: &'static str },
    /// A token id or row index outside the table.
    #[error("{op}: index {index} is outside the {rows} rows of the table")]
    Index { op: &'static str, index: usize, rows: usize },
    /// The buffer is shared, so writing it would change another tensor.
    #[error("{op}: the tensor shares its storage with another and cannot be written in place")]
    Shared { op: &'static str },
    /// A tensor of one device handed to another.
    #[error("{op}: the tensor lives on {got}, this device is {expected}")]
    Device { op: &'static str, expected: String, got: String },
    /// No memory left for a buffer of this size.
    #[error("{op}: no memory for {bytes} bytes on {device}: the job or other programs hold it all")]
    Memory { op: &'static str, bytes: usize, device: String },
    /// The device failed.
    #[error("{op}: the device failed: {reason}")]
    Failed { op: &'static str, reason: String },
    /// The device went away, or its driver gave it up: nothing computes on it any
    /// more in this process.
    #[error("the device {device} was lost during {op} ({reason}); the system's log (`dmesg`) may tell why")]
    Lost { op: &'static str, device: String, reason: String },
    /// Words that name no device.
    #[error("\"{text}\" {reason}")]
    Words { text: String, reason: String },
    /// A device that was asked for and that this machine has not.
    #[error("there is no {asked}: {reason}")]
    Absent { asked: String, reason: String },
}

pub type Result<T, E = TensorError> = std::result::Result<T, E>;

/// Builds the shape error; the closure-free form keeps call sites on one line.
pub(crate) fn shape_error(op: &'static str, expected: impl Into<String>, got: impl Into<String>) -> TensorError {
    TensorError::Shape { op, expected: expected.into(), got: got.into() }
}
