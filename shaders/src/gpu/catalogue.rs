//! Which GPUs there are, and opening one.

use std::sync::Mutex;

use cubecl::device::{WgpuBackend, WgpuDevice, WgpuDeviceKind};
use cubecl::wgpu::{AutoGraphicsApi, RuntimeOptions, try_init_setup};
use cubecl::{Device, client::Client};

use super::Gpu;
use crate::error::{Result, TensorError};

/// A GPU that a driver of this machine offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuEntry {
    /// What `--device` takes: `vulkan:0`, `metal:0`, `dx12:0`.
    pub spec: String,
    pub name: String,
    /// The driver's name and version.
    pub driver: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
    device: WgpuDevice,
}

impl GpuEntry {
    /// A rasterizer that runs on the processor: right, and slow.
    pub fn is_software(&self) -> bool {
        self.kind == "software"
    }
}

/// What an opened GPU says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuFacts {
    /// `vulkan:0 NVIDIA GeForce RTX 4090`.
    pub name: String,
    pub driver: String,
    /// What kernels are compiled to: `wgsl`, `spirv`, `msl`, `cuda`.
    pub compiler: String,
    /// 0 where the driver does not say.
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
    pub tensor_cores: bool,
}

/// All GPUs, in the order in which `gpu:N` counts them: real ones first, fast
/// ones before slow ones.
pub fn list() -> Vec<GpuEntry> {
    let backends = [
        ("vulkan", wgpu::Backend::Vulkan, WgpuBackend::Vulkan),
        ("metal", wgpu::Backend::Metal, WgpuBackend::Metal),
        ("dx12", wgpu::Backend::Dx12, WgpuBackend::Dx12),
    ];
    let mut all: Vec<GpuEntry> =
        backends.into_iter().flat_map(|(prefix, api, pinned)| on_backend(prefix, api, pinned)).collect();
    all.sort_by_key(|entry| match entry.kind {
        "discrete" => 0,
        "integrated" => 1,
        "virtual" => 2,
        "other" => 3,
        _ => 4,
    });
    all
}

fn on_backend(prefix: &'static str, api: wgpu::Backend, pinned: WgpuBackend) -> Vec<GpuEntry> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: api.into(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let adapters = cubecl::future::block_on(instance.enumerate_adapters(api.into()));
    // The runtime counts each kind by itself.
    let mut counts = [0usize; 5];
    adapters
        .iter()
        .map(wgpu::Adapter::get_info)
        .enumerate()
        .map(|(index, info)| {
            let mut next = |kind: usize| {
                counts[kind] += 1;
                counts[kind] - 1
            };
            let (kind, device) = match info.device_type {
                wgpu::DeviceType::DiscreteGpu => ("discrete", WgpuDeviceKind::DiscreteGpu(next(0))),
                wgpu::DeviceType::IntegratedGpu => ("integrated", WgpuDeviceKind::IntegratedGpu(next(1))),
                wgpu::DeviceType::VirtualGpu => ("virtual", WgpuDeviceKind::VirtualGpu(next(2))),
                wgpu::DeviceType::Cpu => ("software", WgpuDeviceKind::Cpu),
                wgpu::DeviceType::Other => ("other", WgpuDeviceKind::Other(next(3))),
            };
            GpuEntry {
                spec: format!("{prefix}:{index}"),
                name: info.name,
                driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
                kind,
                device: WgpuDevice::new(device).on(pinned),
            }
        })
        .collect()
}

/// The devices that this process has opened; a runtime is opened once.
static OPENED: Mutex<Vec<(WgpuDevice, String)>> = Mutex::new(Vec::new());

/// Opens a device of [`list`].
///
/// # Errors
/// [`TensorError::Failed`] with the driver's reason.
pub fn open(entry: &GpuEntry) -> Result<Gpu> {
    const OP: &str = "open";
    let failed =
        |reason: String| TensorError::Failed { op: OP, reason: format!("{} {}: {reason}", entry.spec, entry.name) };
    let mut opened = OPENED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !opened.iter().any(|(device, _)| *device == entry.device) {
        let options = RuntimeOptions::try_default().map_err(|error| failed(error.to_string()))?;
        try_init_setup::<AutoGraphicsApi>(&entry.device, options).map_err(|error| failed(error.to_string()))?;
        opened.push((entry.device.clone(), entry.spec.clone()));
    }
    drop(opened);
    let client = Device::Wgpu(entry.device.clone()).client();
    let facts = facts(entry, &client);
    if facts.units_per_cube < 64 || facts.shared_bytes < 16 << 10 {
        return Err(failed(format!(
            "kernels need 64 units and 16 KiB of shared memory in a cube; this device has {} and {} bytes",
            facts.units_per_cube, facts.shared_bytes
        )));
    }
    Ok(Gpu::new(client, facts))
}

fn facts(entry: &GpuEntry, client: &Client) -> GpuFacts {
    use cubecl::ir::{ElemType, FloatKind};
    let properties = client.properties();
    let hardware = &properties.hardware;
    let compiler = client.name().trim_start_matches("wgpu<").trim_end_matches('>').to_string();
    let known = [("f32", FloatKind::F32), ("f16", FloatKind::F16), ("bf16", FloatKind::BF16)];
    let types = known
        .into_iter()
        .filter(|(_, kind)| properties.supports_type(ElemType::Float(*kind)))
        .map(|(name, _)| name)
        .collect();
    GpuFacts {
        name: format!("{} {}", entry.spec, entry.name),
        driver: entry.driver.clone(),
        compiler,
        memory_bytes: properties.memory.max_memory().unwrap_or(0),
        largest_buffer: properties.memory.max_page_size,
        shared_bytes: hardware.max_shared_memory_size,
        units_per_cube: hardware.max_units_per_cube as usize,
        subgroup: (hardware.plane_size_min, hardware.plane_size_max),
        types,
        tensor_cores: !properties.features.matmul.cmma.is_empty() || !properties.features.matmul.mma.is_empty(),
    }
}
