//! GPU devices: the operations as cubecl kernels, on any graphics card that
//! wgpu reaches (Vulkan, Metal, DirectX 12), and with the feature `cuda` through
//! CUDA.
//!
//! Each operation's kernels are in its folder, `ops/<op>/kernel.rs`. Here are
//! what they share: memory ([`pool`], [`ledger`], [`arena`]), arguments and launch sizes
//! ([`launch`]), sums over a cube ([`cube`]), the list of devices
//! ([`catalogue`]).
//!
//! A call returns when its kernels are queued. An error of the device shows
//! when something is read back; a step reads at least its loss.
//!
//! A build without the feature `gpu` has only the names of devices ([`entry`]), and
//! its list of devices is empty.

#[cfg(not(feature = "gpu"))]
mod absent;
#[cfg(feature = "gpu")]
mod arena;
#[cfg(feature = "gpu")]
mod catalogue;
#[cfg(feature = "gpu")]
pub(crate) mod cube;
mod entry;
#[cfg(feature = "gpu")]
mod failure;
#[cfg(feature = "gpu")]
mod kept;
#[cfg(feature = "gpu")]
pub(crate) mod launch;
#[cfg(feature = "gpu")]
mod ledger;
#[cfg(feature = "gpu")]
mod memory;
#[cfg(feature = "gpu")]
mod opened;
#[cfg(feature = "gpu")]
pub(crate) mod philox;
#[cfg(feature = "gpu")]
mod pool;
mod seen;

#[cfg(not(feature = "gpu"))]
pub use absent::{Gpu, list, open};
#[cfg(feature = "gpu")]
pub use catalogue::{list, open};
pub use entry::{Compiler, GpuEntry, GpuFacts, Products, TensorCores};
#[cfg(feature = "gpu")]
pub use opened::Gpu;
#[cfg(feature = "gpu")]
pub use pool::{GpuBuffer, GpuMemory};
pub use seen::seen;

/// What a user does about a build without GPU code.
pub const NOT_BUILT_IN: &str = "this program was built without GPU code; `cargo build --release --features gpu,spirv` \
    builds it with (Apple: `--features gpu`), or choose the device \"cpu\"";

/// Whether this build computes on GPUs at all.
pub const BUILT_IN: bool = cfg!(feature = "gpu");
