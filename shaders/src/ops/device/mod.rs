//! A device: memory, and the operations of a training step.
//!
//! Each operation is a method in its own folder, which says once what it takes, is timed
//! under its name, and calls what the backend has for it. Here is what is no operation.

pub(crate) mod counting;

use std::sync::Arc;
use std::time::Instant;

pub use self::counting::Counting;
use super::Operation;
use crate::cpu::{self, Cpu};
use crate::error::Result;
#[cfg(feature = "gpu")]
use crate::gpu::Gpu;
use crate::profile::Profile;

/// What computes. The engine is the same code on each of them.
#[derive(Clone)]
pub(crate) enum Backend {
    Cpu(Arc<Cpu>),
    #[cfg(feature = "gpu")]
    Gpu(Arc<Gpu>),
    /// Shapes and no values.
    Counting(Arc<Counting>),
}

/// A device; a clone is the same one.
#[derive(Clone)]
pub struct Device {
    backend: Backend,
    profile: Option<Arc<Profile>>,
}

#[cfg(feature = "gpu")]
impl From<Arc<Gpu>> for Device {
    fn from(gpu: Arc<Gpu>) -> Device {
        Device { backend: Backend::Gpu(gpu), profile: None }
    }
}

impl From<Arc<Counting>> for Device {
    fn from(counting: Arc<Counting>) -> Device {
        Device { backend: Backend::Counting(counting), profile: None }
    }
}

impl Device {
    /// The CPU with this many threads; `None` takes as many as the machine has cores for
    /// this process.
    ///
    /// # Errors
    /// [`TensorError::Failed`](crate::TensorError::Failed) if the system refuses the
    /// threads.
    pub fn cpu(threads: Option<usize>) -> Result<Device> {
        Ok(Device { backend: Backend::Cpu(Arc::new(Cpu::new(threads)?)), profile: None })
    }

    /// The same device, whose operations from now on are timed one by one: it waits for
    /// each, so its whole is slower than the device's own.
    pub fn timed_by(&self, profile: Arc<Profile>) -> Device {
        Device { backend: self.backend.clone(), profile: Some(profile) }
    }

    /// The GPU behind this device, for tests that set its limits.
    #[cfg(all(test, feature = "gpu"))]
    pub(crate) fn gpu_mut(&mut self) -> &mut Gpu {
        match &mut self.backend {
            Backend::Gpu(gpu) => Arc::get_mut(gpu).expect("no clone of the device"),
            _ => panic!("a device on a GPU"),
        }
    }

    pub(crate) fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Does an operation's work, and notes what it took if somebody asks.
    pub(crate) fn timed<T>(&self, operation: Operation, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(profile) = &self.profile else { return work() };
        let started = Instant::now();
        let result = work()?;
        self.synchronize()?;
        profile.add(operation.name(), started.elapsed());
        Ok(result)
    }
}

/// What a device says of itself.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// `cpu` or `vulkan:0 NVIDIA …`.
    pub name: String,
    /// Threads (CPU) or compute units.
    pub parallelism: usize,
    /// Memory in bytes, 0 where unknown.
    pub memory_bytes: u64,
    /// Whether that is the host's own memory: the CPU, a graphics part of the
    /// processor, a rasterizer that runs on it.
    pub shares_host_memory: bool,
    /// By how much of itself an operand of a matrix product may be rounded: 0 for
    /// f32, 1/256 for tensor cores of bf16.
    pub product_rounding: f64,
    /// Whether tensors lie in the host's own memory.
    pub on_host: bool,
}

impl DeviceInfo {
    /// The type that matrix products round their operands to.
    pub fn products(&self) -> &'static str {
        match self.product_rounding {
            rounding if rounding > 1.0 / 1024.0 => "bf16",
            rounding if rounding > 0.0 => "f16",
            _ => "f32",
        }
    }
}

impl Device {
    pub fn info(&self) -> DeviceInfo {
        match self.backend() {
            Backend::Cpu(cpu) => DeviceInfo {
                name: "cpu".into(),
                parallelism: cpu.workers.threads(),
                memory_bytes: 0,
                product_rounding: 0.0,
                on_host: true,
                shares_host_memory: true,
            },
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => {
                let facts = gpu.facts();
                DeviceInfo {
                    name: facts.name.clone(),
                    parallelism: 1,
                    memory_bytes: facts.memory_bytes,
                    shares_host_memory: facts.shares_host_memory(),
                    product_rounding: facts.product_rounding(),
                    on_host: false,
                }
            }
            Backend::Counting(count) => count.like.info(),
        }
    }

    /// Bytes of live tensors now, and the most since the last reset.
    pub fn allocated_bytes(&self) -> (u64, u64) {
        match self.backend() {
            Backend::Cpu(cpu) => cpu.counts(),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => gpu.counts(),
            Backend::Counting(count) => count.ledger.bytes(),
        }
    }

    pub fn reset_peak(&self) {
        match self.backend() {
            Backend::Cpu(cpu) => cpu.reset_peak_bytes(),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => gpu.reset_peak_bytes(),
            Backend::Counting(count) => count.ledger.reset_peak(),
        }
    }

    /// Gives back the buffers kept for reuse.
    pub fn trim(&self) {
        match self.backend() {
            Backend::Cpu(cpu) => cpu.trim_pool(),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => gpu.trim_pool(),
            Backend::Counting(_) => {}
        }
    }

    /// Takes memory for the tensors that a step makes, before the step: what is
    /// made from now on lies there, and asks the driver for nothing. What a run
    /// keeps (weights, gradients, optimizer state) is made before. A step that needs more
    /// than was reserved gets it if the device has it.
    ///
    /// # Errors
    /// [`TensorError::Memory`](crate::TensorError::Memory) if the device has not
    /// so much.
    #[cfg_attr(not(feature = "gpu"), expect(unused_variables, reason = "only a GPU reserves"))]
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        match self.backend() {
            // The host's memory is there when it is asked for.
            Backend::Cpu(_) => Ok(()),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => gpu.reserve_pages(bytes),
            Backend::Counting(_) => Ok(()),
        }
    }

    /// Bytes that the ledger counts for a tensor of so many bytes.
    pub(crate) fn tensor_bytes(&self, bytes: u64) -> u64 {
        match self.backend() {
            Backend::Cpu(_) => cpu::bucket(bytes as usize) as u64,
            #[cfg(feature = "gpu")]
            Backend::Gpu(_) => bytes.max(4).next_multiple_of(4),
            Backend::Counting(count) => count.like.tensor_bytes(bytes),
        }
    }

    /// Waits for everything that was queued.
    ///
    /// # Errors
    /// What went wrong in it.
    pub fn synchronize(&self) -> Result<()> {
        match self.backend() {
            Backend::Cpu(_) => Ok(()),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => {
                const OP: &str = "synchronize";
                gpu.guarded(OP, || cubecl::future::block_on(gpu.client().sync()))?
                    .map_err(|error| gpu.failed(OP, error))
            }
            Backend::Counting(_) => Ok(()),
        }
    }
}
