//! Memory: tensors that are made, written, copied and read back.

pub(crate) mod conformance;
