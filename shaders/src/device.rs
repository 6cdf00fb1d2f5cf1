//! From the words of `--device` to a device.

#[cfg(feature = "gpu")]
use std::sync::Arc;

use crate::error::{Result, TensorError};
use crate::gpu::{self, Compiler, GpuEntry, Products, TensorCores};
use crate::ops::Device;

/// What `--device` takes.
pub const DEVICE_WORDS: &str = "auto, cpu, gpu, gpu:N, vulkan, vulkan:N, metal, metal:N, dx12, dx12:N, cuda, cuda:N; \
    behind a GPU's name /wgsl or /spirv (Vulkan), and /f32, /bf16 or /f16 for its matrix products";

/// A parsed `--device`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best real GPU, or else the CPU.
    Auto,
    Cpu,
    /// The N-th GPU of [`gpu::list`], whatever its driver.
    Gpu(usize),
    /// The N-th GPU of one graphics interface.
    On(&'static str, usize),
    /// One of these with a compiler, a type of products or both:
    /// `vulkan:0/spirv/f32`.
    With(Box<DeviceChoice>, Option<Compiler>, Products),
}

impl std::str::FromStr for DeviceChoice {
    type Err = TensorError;

    fn from_str(text: &str) -> Result<DeviceChoice> {
        let refuse = |reason: &str| TensorError::Words { text: text.into(), reason: reason.into() };
        if let Some((device, words)) = text.split_once('/') {
            let (mut compiler, mut products) = (None, Products::Auto);
            for word in words.split('/') {
                match word {
                    "wgsl" => compiler = Some(Compiler::Wgsl),
                    "spirv" => compiler = Some(Compiler::SpirV),
                    "f32" => products = Products::F32,
                    "bf16" => products = Products::Cores(TensorCores::Bf16),
                    "f16" => products = Products::Cores(TensorCores::F16),
                    _ => {
                        return Err(refuse(&format!("has /{word} behind; there are /wgsl, /spirv, /f32, /bf16, /f16")));
                    }
                }
            }
            return Ok(DeviceChoice::With(Box::new(device.parse()?), compiler, products));
        }
        let (kind, number) = match text.split_once(':') {
            Some((kind, number)) => {
                let number = number.parse::<usize>().map_err(|_| refuse("ends in no number"))?;
                (kind, Some(number))
            }
            None => (text, None),
        };
        let first = number.unwrap_or(0);
        match (kind, number) {
            ("auto", None) => Ok(DeviceChoice::Auto),
            ("cpu", None) => Ok(DeviceChoice::Cpu),
            ("gpu", _) => Ok(DeviceChoice::Gpu(first)),
            ("vulkan", _) => Ok(DeviceChoice::On("vulkan", first)),
            ("metal", _) => Ok(DeviceChoice::On("metal", first)),
            ("dx12", _) => Ok(DeviceChoice::On("dx12", first)),
            ("cuda", _) if cfg!(feature = "cuda") => Ok(DeviceChoice::On("cuda", first)),
            ("cuda", _) => Err(refuse(
                "is not in this build (cargo build --release --features cuda has it); an NVIDIA card also computes through its Vulkan driver, as \"vulkan\"",
            )),
            _ => Err(refuse(&format!("is no device; there are {DEVICE_WORDS}"))),
        }
    }
}

impl DeviceChoice {
    /// The GPU that is meant, `None` for the CPU.
    ///
    /// # Errors
    /// A GPU that was asked for by name and is not there: nothing falls back to
    /// the CPU in silence.
    pub fn find(&self) -> Result<Option<GpuEntry>> {
        match self {
            DeviceChoice::Cpu => Ok(None),
            DeviceChoice::With(choice, compiler, products) => {
                let Some(entry) = choice.find()? else {
                    return Err(TensorError::Words {
                        text: "/".into(),
                        reason:
                            "names a compiler or a type of products, which are GPUs' to choose; the device is the CPU"
                                .into(),
                    });
                };
                let entry = entry.computing(*products);
                match compiler {
                    None => Ok(Some(entry)),
                    Some(compiler) if entry.compilers().contains(compiler) => Ok(Some(entry.with(*compiler))),
                    Some(compiler) => Err(TensorError::Words {
                        text: compiler.name().into(),
                        reason: format!("is no compiler of {} in this build", entry.spec),
                    }),
                }
            }
            // A rasterizer on the processor is slower than the CPU device.
            DeviceChoice::Auto => Ok(gpu::list().into_iter().find(|entry| !entry.is_software())),
            DeviceChoice::Gpu(number) => pick("gpu", *number, gpu::list()),
            DeviceChoice::On(interface, number) => {
                let spec = format!("{interface}:{number}");
                let all = gpu::list();
                match all.iter().find(|entry| entry.spec == spec) {
                    Some(entry) => Ok(Some(entry.clone())),
                    None => Err(absent(&spec, &all)),
                }
            }
        }
    }
}

fn pick(kind: &str, number: usize, mut all: Vec<GpuEntry>) -> Result<Option<GpuEntry>> {
    if number < all.len() {
        return Ok(Some(all.swap_remove(number)));
    }
    Err(absent(&format!("{kind}:{number}"), &all))
}

fn absent(asked: &str, all: &[GpuEntry]) -> TensorError {
    let there: Vec<String> = all.iter().map(|entry| format!("{} {}", entry.spec, entry.name)).collect();
    let reason = match there.as_slice() {
        [] if !gpu::BUILT_IN => gpu::NOT_BUILT_IN.to_string(),
        [] => "no driver of this machine offers a GPU. On Linux install the card's Vulkan driver (the NVIDIA driver \
               has one; mesa-vulkan-drivers has those of AMD and Intel), or choose the device \"cpu\""
            .to_string(),
        list => format!("this machine has {} and the cpu", list.join(", ")),
    };
    TensorError::Absent { asked: asked.into(), reason }
}

/// Opens the device that `asked` names; `threads` are the CPU's.
///
/// # Errors
/// Words that name no device, a GPU that is not there or cannot be opened.
pub fn open(asked: &str, threads: Option<usize>) -> Result<Device> {
    match asked.parse::<DeviceChoice>()?.find()? {
        #[cfg(feature = "gpu")]
        Some(entry) => Ok(Arc::new(gpu::open(&entry)?).into()),
        #[cfg(not(feature = "gpu"))]
        Some(entry) => Err(absent(&entry.spec, &[])),
        None => Device::cpu(threads),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_device() {
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        assert_eq!("cpu".parse(), Ok(DeviceChoice::Cpu));
        assert_eq!("gpu".parse(), Ok(DeviceChoice::Gpu(0)));
        assert_eq!("vulkan:2".parse(), Ok(DeviceChoice::On("vulkan", 2)));
        let with =
            |compiler, products| Ok(DeviceChoice::With(Box::new(DeviceChoice::On("vulkan", 0)), compiler, products));
        assert_eq!("vulkan:0/wgsl".parse(), with(Some(Compiler::Wgsl), Products::Auto));
        assert_eq!("vulkan:0/spirv/f32".parse(), with(Some(Compiler::SpirV), Products::F32));
        assert_eq!("vulkan/f16".parse(), with(None, Products::Cores(TensorCores::F16)));
        for wrong in
            ["", "vulkan/glsl", "vulkan/", "vulkan:0/f64", "cpu/f32/x", "cpu:1", "auto:0", "vulkan:x", "gpu:-1", "tpu"]
        {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_and_never_the_cpu() {
        for asked in ["gpu:99", "vulkan:99", "metal:99", "vulkan:99/f32"] {
            let error = open(asked, None).err().map(|error| error.to_string()).unwrap_or_default();
            let device = asked.split('/').next().unwrap_or_default();
            assert!(error.contains(device), "{asked}: {error}");
        }
    }
}
