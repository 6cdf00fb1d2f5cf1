//! What a GPU is called and what it says of itself: the words that a build
//! without the feature `gpu` knows too.

use crate::tensor::DType;

/// A GPU that a driver of this machine offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuEntry {
    /// What `--device` takes: `vulkan:0`, `metal:0`, `dx12:0`, `cuda:0`.
    pub spec: String,
    pub name: String,
    /// The driver's name and version.
    pub driver: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
    /// What kernels are compiled to.
    pub compiler: Compiler,
    /// What matrix products are computed in.
    pub products: Products,
    #[cfg(feature = "gpu")]
    pub(super) device: cubecl::Device,
}

/// What kernels are compiled to on their way to a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compiler {
    /// The fewest types, and right on every driver that was seen.
    Wgsl,
    /// Vulkan's own; some drivers compile it wrongly.
    SpirV,
    /// CUDA C++, by the driver's run-time compiler.
    Cuda,
}

impl Compiler {
    pub fn name(self) -> &'static str {
        match self {
            Compiler::Wgsl => "wgsl",
            Compiler::SpirV => "spirv",
            Compiler::Cuda => "cuda",
        }
    }
}

/// What matrix products are computed in. All else is f32 on every device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Products {
    /// On tensor cores if a real device has them, else in f32.
    #[default]
    Auto,
    /// On plain units.
    F32,
    /// On tensor cores of this type, on a software device too.
    Cores(TensorCores),
}

impl GpuEntry {
    /// A rasterizer that runs on the processor: right, and slow.
    pub fn is_software(&self) -> bool {
        self.kind == "software"
    }

    /// The compilers that this build has for the device, the one that uses more
    /// of it first.
    pub fn compilers(&self) -> &'static [Compiler] {
        match self.compiler {
            Compiler::Cuda => &[Compiler::Cuda],
            _ if cfg!(all(feature = "spirv", not(target_vendor = "apple"))) && self.spec.starts_with("vulkan") => {
                &[Compiler::SpirV, Compiler::Wgsl]
            }
            _ => &[Compiler::Wgsl],
        }
    }

    /// The same device with another compiler.
    pub fn with(&self, compiler: Compiler) -> GpuEntry {
        GpuEntry { compiler, ..self.clone() }
    }

    /// The same device with products computed in another type.
    pub fn computing(&self, products: Products) -> GpuEntry {
        GpuEntry { products, ..self.clone() }
    }
}

/// Tensor cores by the type of their operands; their sums are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TensorCores {
    /// The range of f32.
    Bf16,
    /// Three bits more, and a range that operands are scaled into.
    F16,
}

impl TensorCores {
    pub fn name(self) -> &'static str {
        self.dtype().name()
    }

    pub(crate) fn dtype(self) -> DType {
        match self {
            TensorCores::Bf16 => DType::Bf16,
            TensorCores::F16 => DType::F16,
        }
    }
}

/// What an opened GPU says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuFacts {
    /// `vulkan:0 NVIDIA GeForce RTX 4090`.
    pub name: String,
    pub driver: String,
    /// As [`GpuEntry::kind`].
    pub kind: &'static str,
    pub compiler: Compiler,
    /// 0 if the driver does not say.
    pub memory_bytes: u64,
    /// Bytes of the largest single buffer.
    pub largest_buffer: u64,
    /// Bytes of a cube's shared memory.
    pub shared_bytes: usize,
    pub units_per_cube: usize,
    /// Units that run in lockstep: the least and the most.
    pub subgroup: (u32, u32),
    /// Number types that kernels may compute with.
    pub types: Vec<&'static str>,
    /// The type that products take their operands in; none without such cores.
    pub tensor_cores: Option<TensorCores>,
}

impl GpuFacts {
    /// Whether the device's memory is the host's.
    pub fn shares_host_memory(&self) -> bool {
        matches!(self.kind, "integrated" | "software")
    }

    /// By how much of itself an operand of a product may be rounded.
    pub fn product_rounding(&self) -> f64 {
        match self.tensor_cores {
            Some(TensorCores::Bf16) => 1.0 / 256.0,
            Some(TensorCores::F16) => 1.0 / 2048.0,
            None => 0.0,
        }
    }
}
