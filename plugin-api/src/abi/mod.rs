//! The door: how a plugin in a library of its own is found, checked, loaded
//! and called.
//!
//! One frozen function table ([`table`]), reached by two ways that hand out the
//! same table: the plain C symbol `finetuned_plugin` (C, C++, Zig; see
//! `include/finetuned_plugin.h`), and an `abi_stable` root module, whose layout
//! the host checks field by field where a library has one. Version 1 never
//! changes, not even by a field at its end: a new ability is a new table beside
//! it, under a new number.
//!
//! - [`export`]: what a Rust plugin says, [`export_plugins!`](crate::export_plugins).
//! - [`discover`]: the folders, who may write there, and the copy by hash.
//! - [`load`]: from a file to entries of a registry.
//! - [`calls`]: which plugin is being called, for the one who finds the body;
//!   deadlines and memory.
//!
//! Threads: the host calls one instance from one thread at a time; instances
//! are independent. Pointers are valid until the call returns. A library is
//! never unloaded.

#![allow(unsafe_code)]

pub mod calls;
pub mod discover;
pub mod export;
mod host;
pub mod load;
pub mod table;

pub use load::load;
pub use table::{ABI_VERSION, MAGIC, SYMBOL};

// What the export macro names; no part of the interface.
#[doc(hidden)]
pub mod private {
    pub use abi_stable::library::{__call_root_module_loader, CheckTypeLayout, LibHeader, RootModuleResult};
}
