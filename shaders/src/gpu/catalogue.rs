//! Which GPUs there are, and opening one.

use std::sync::Mutex;

use cubecl::device::{RuntimeId, WgpuBackend, WgpuDevice, WgpuDeviceKind};
use cubecl::ir::{ElemType, FloatKind};
use cubecl::wgpu::{AutoGraphicsApi, RuntimeOptions, WgpuServer, WgslCompiler, try_init_setup};
use cubecl::{Device, client::Client};

use super::Gpu;
use super::entry::{Compiler, GpuEntry, GpuFacts, Products, TensorCores};
use crate::error::{Result, TensorError};

impl TensorCores {
    pub(crate) fn float(self) -> FloatKind {
        match self {
            TensorCores::Bf16 => FloatKind::BF16,
            TensorCores::F16 => FloatKind::F16,
        }
    }
}

/// All GPUs, in the order in which `gpu:N` counts them: real ones first, fast
/// ones before slow ones.
pub fn list() -> Vec<GpuEntry> {
    let backends = [
        ("vulkan", wgpu::Backend::Vulkan, WgpuBackend::Vulkan),
        ("metal", wgpu::Backend::Metal, WgpuBackend::Metal),
        ("dx12", wgpu::Backend::Dx12, WgpuBackend::Dx12),
    ];
    let mut all = on_cuda();
    all.extend(backends.into_iter().flat_map(|(prefix, api, pinned)| on_backend(prefix, api, pinned)));
    all.sort_by_key(|entry| match entry.kind {
        "discrete" => 0,
        "integrated" => 1,
        "virtual" => 2,
        "other" => 3,
        _ => 4,
    });
    all
}

/// CUDA's own list; none where its driver is not there.
#[cfg(feature = "cuda")]
fn on_cuda() -> Vec<GpuEntry> {
    let count = std::panic::catch_unwind(|| (0..64).take_while(|index| Device::cuda(*index).is_ok()).count());
    let entry = |index| GpuEntry {
        spec: format!("cuda:{index}"),
        name: "NVIDIA GPU".into(),
        driver: "CUDA".into(),
        kind: "discrete",
        compiler: Compiler::Cuda,
        products: Products::Auto,
        device: Device::Cuda(cubecl::device::CudaDevice::new(index)),
    };
    (0..count.unwrap_or(0)).map(entry).collect()
}

#[cfg(not(feature = "cuda"))]
fn on_cuda() -> Vec<GpuEntry> {
    Vec::new()
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
                compiler: Compiler::Wgsl,
                products: Products::Auto,
                device: Device::Wgpu(WgpuDevice::new(device).on(pinned)),
            }
        })
        .collect()
}

/// The devices that this process has set up; a runtime is set up once.
static OPENED: Mutex<Vec<(Device, Compiler)>> = Mutex::new(Vec::new());

/// Opens a device of [`list`] with the compiler that the entry names.
///
/// # Errors
/// [`TensorError::Failed`] with the driver's reason.
pub fn open(entry: &GpuEntry) -> Result<Gpu> {
    const OP: &str = "open";
    let failed =
        |reason: String| TensorError::Failed { op: OP, reason: format!("{} {}: {reason}", entry.spec, entry.name) };
    let client = {
        let mut opened = OPENED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let key = (entry.device.clone(), entry.compiler);
        let first = !opened.contains(&key);
        let client = client(entry, first).map_err(failed)?;
        if first {
            opened.push(key);
        }
        client
    };
    let cores = cores_for(entry, &client).map_err(failed)?;
    let facts = facts(entry, &client, cores);
    if facts.units_per_cube < 64 || facts.shared_bytes < 16 << 10 {
        return Err(failed(format!(
            "kernels need 64 units and 16 KiB of shared memory in a cube; this device has {} and {} bytes",
            facts.units_per_cube, facts.shared_bytes
        )));
    }
    Ok(Gpu::new(client, facts))
}

/// The runtime's client. Some of its ways to start panic where they fail.
fn client(entry: &GpuEntry, first: bool) -> Result<Client, String> {
    if let (Device::Wgpu(device), true) = (&entry.device, first && chooses_by_itself(entry)) {
        let options = RuntimeOptions::try_default().map_err(|error| error.to_string())?;
        try_init_setup::<AutoGraphicsApi>(device, options).map_err(|error| error.to_string())?;
    }
    let device = entry.device.clone();
    let own = chooses_by_itself(entry);
    std::panic::catch_unwind(move || match device {
        Device::Wgpu(_) if !own => Client::load::<WgpuServer<WgslCompiler>>(RuntimeId::strip(device.to_id())),
        device => device.client(),
    })
    .map_err(|_| "the driver could not be started".to_string())
}

/// Whether the compiler is the one that the runtime takes for the device by
/// itself: SPIR-V on Vulkan if it is built in, else WGSL.
fn chooses_by_itself(entry: &GpuEntry) -> bool {
    entry.compilers().first() == Some(&entry.compiler)
}

/// Tensor cores whose products add up in f32, those first that need no scaling.
/// WGSL has no way to them.
fn tensor_cores(entry: &GpuEntry, client: &Client) -> Vec<TensorCores> {
    if entry.compiler == Compiler::Wgsl {
        return Vec::new();
    }
    let configurations = &client.properties().features.matmul.cmma;
    let f32 = ElemType::Float(FloatKind::F32);
    let there = |cores: &TensorCores| {
        let kind = ElemType::Float(cores.float());
        configurations.iter().any(|c| c.a_type == kind && c.b_type == kind && c.cd_type == f32)
    };
    [TensorCores::Bf16, TensorCores::F16].into_iter().filter(there).collect()
}

/// The cores that products go to.
fn cores_for(entry: &GpuEntry, client: &Client) -> Result<Option<TensorCores>, String> {
    let there = tensor_cores(entry, client);
    match entry.products {
        // In software such cores are imitated, at a hundredth of the speed.
        Products::Auto if entry.is_software() => Ok(None),
        Products::Auto => Ok(there.first().copied()),
        Products::F32 => Ok(None),
        Products::Cores(asked) if there.contains(&asked) => Ok(Some(asked)),
        Products::Cores(asked) => {
            Err(format!("it has no tensor cores of {} that {} reaches", asked.name(), entry.compiler.name()))
        }
    }
}

fn facts(entry: &GpuEntry, client: &Client, tensor_cores: Option<TensorCores>) -> GpuFacts {
    let properties = client.properties();
    let hardware = &properties.hardware;
    let known = [("f32", FloatKind::F32), ("f16", FloatKind::F16), ("bf16", FloatKind::BF16)];
    let types = known
        .into_iter()
        .filter(|(_, kind)| properties.supports_type(ElemType::Float(*kind)))
        .map(|(name, _)| name)
        .collect();
    GpuFacts {
        name: format!("{} {}", entry.spec, entry.name),
        driver: entry.driver.clone(),
        kind: entry.kind,
        compiler: entry.compiler,
        memory_bytes: properties.memory.max_memory().unwrap_or(0),
        largest_buffer: properties.memory.max_page_size,
        shared_bytes: hardware.max_shared_memory_size,
        units_per_cube: hardware.max_units_per_cube as usize,
        subgroup: (hardware.plane_size_min, hardware.plane_size_max),
        types,
        tensor_cores,
    }
}
