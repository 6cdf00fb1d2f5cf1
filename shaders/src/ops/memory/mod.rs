//! Memory: tensors that are made, written, copied and read back.

pub(crate) mod conformance;

use super::{Device, Operation, device::Backend};
use crate::error::Result;
use crate::tensor::{DType, Reading, Tensor};

impl Device {
    /// f32 zeros.
    pub fn zeros(&self, shape: &[usize]) -> Result<Tensor> {
        self.timed(Operation::Zeros, || match self.backend() {
            Backend::Cpu(cpu) => cpu.zeros_f32("zeros", shape),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => gpu.zeros_f32("zeros", shape),
            Backend::Counting(count) => count.f32("zeros", shape),
        })
    }

    pub fn upload(&self, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        self.timed(Operation::Upload, || match self.backend() {
            Backend::Cpu(cpu) => cpu.upload_f32(shape, values),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => gpu.upload_f32("upload", shape, values),
            Backend::Counting(count) => count.f32("upload", shape),
        })
    }

    pub fn upload_u32(&self, shape: &[usize], values: &[u32]) -> Result<Tensor> {
        self.timed(Operation::UploadU32, || match self.backend() {
            Backend::Cpu(cpu) => cpu.upload_words(shape, values),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => gpu.upload_bytes("upload_u32", shape, DType::U32, bytemuck::cast_slice(values)),
            Backend::Counting(count) => count.take("upload_u32", shape, DType::U32),
        })
    }

    /// Rounds to bf16 (to nearest, ties to even).
    pub fn upload_bf16(&self, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        self.timed(Operation::UploadBf16, || match self.backend() {
            Backend::Cpu(cpu) => cpu.upload_half(shape, values),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => gpu.upload_half(shape, values),
            Backend::Counting(count) => count.take("upload_bf16", shape, DType::Bf16),
        })
    }

    /// Values as f32, whatever the float type.
    pub fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        self.timed(Operation::Read, || match self.backend() {
            Backend::Cpu(cpu) => cpu.read_values(x),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => gpu.read_values(x),
            Backend::Counting(_) => Ok(Vec::new()),
        })
    }

    /// The values of an f32 tensor as they are now. Where a device works behind the
    /// caller's back, what is queued after this call runs while they are copied.
    pub fn read_later(&self, x: &Tensor) -> Result<Reading<'_>> {
        self.timed::<Reading<'_>>(Operation::ReadLater, || match self.backend() {
            Backend::Cpu(cpu) => {
                let values = cpu.read_values(x)?;
                Ok(Box::new(move || Ok(values)))
            }
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => gpu.read_f32_later("read_later", x),
            Backend::Counting(_) => Ok(Box::new(|| Ok(Vec::new()))),
        })
    }

    /// Overwrites an f32 tensor.
    pub fn write(&self, x: &mut Tensor, values: &[f32]) -> Result<()> {
        self.timed(Operation::Write, || match self.backend() {
            Backend::Cpu(cpu) => cpu.write_values(x, values),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => gpu.write_values(x, values),
            Backend::Counting(_) => Ok(()),
        })
    }

    /// A copy with storage of its own.
    pub fn copy(&self, x: &Tensor) -> Result<Tensor> {
        self.timed(Operation::Copy, || match self.backend() {
            Backend::Cpu(cpu) => cpu.copy_tensor("copy", x),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => gpu.copy_tensor("copy", x),
            Backend::Counting(count) => {
                count.own("copy", x)?;
                count.take("copy", x.shape(), x.dtype())
            }
        })
    }
}
