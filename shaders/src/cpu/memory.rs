//! Making, filling, reading and writing tensors.

use half::bf16;

use super::{Cpu, PIECE};
use crate::error::{Result, TensorError, shape_error};
use crate::tensor::{DType, Tensor};

impl Cpu {
    fn expect_values(op: &'static str, shape: &[usize], got: usize) -> Result<()> {
        let expected: usize = shape.iter().product();
        if expected != got {
            return Err(shape_error(op, format!("{expected} values for {shape:?}"), format!("{got}")));
        }
        Ok(())
    }

    pub(crate) fn fill(&self, y: &mut [f32], value: f32) {
        self.workers.each(y.chunks_mut(4 * PIECE), |y| y.fill(value));
    }

    pub(crate) fn copy_slice(&self, y: &mut [f32], x: &[f32]) {
        self.workers.each(y.chunks_mut(4 * PIECE).zip(x.chunks(4 * PIECE)), |(y, x)| y.copy_from_slice(x));
    }

    pub(crate) fn upload_f32(&self, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        Cpu::expect_values("upload", shape, values.len())?;
        let mut x = self.empty_f32("upload", shape)?;
        self.copy_slice(self.f32_mut("upload", &mut x)?, values);
        Ok(x)
    }

    pub(crate) fn upload_words(&self, shape: &[usize], values: &[u32]) -> Result<Tensor> {
        Cpu::expect_values("upload_u32", shape, values.len())?;
        let mut x = self.empty("upload_u32", shape, DType::U32)?;
        self.bytes_mut("upload_u32", &mut x, DType::U32)?.copy_from_slice(bytemuck::cast_slice(values));
        Ok(x)
    }

    pub(crate) fn upload_bytes(&self, op: &'static str, shape: &[usize], values: &[u8]) -> Result<Tensor> {
        Cpu::expect_values(op, shape, values.len())?;
        let mut x = self.empty(op, shape, DType::U8)?;
        self.bytes_mut(op, &mut x, DType::U8)?.copy_from_slice(values);
        Ok(x)
    }

    pub(crate) fn upload_half(&self, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        Cpu::expect_values("upload_bf16", shape, values.len())?;
        let mut x = self.empty("upload_bf16", shape, DType::Bf16)?;
        let y: &mut [bf16] = bytemuck::cast_slice_mut(self.bytes_mut("upload_bf16", &mut x, DType::Bf16)?);
        self.workers.each(y.chunks_mut(PIECE).zip(values.chunks(PIECE)), |(y, x)| {
            for (y, x) in y.iter_mut().zip(x) {
                *y = bf16::from_f32(*x);
            }
        });
        Ok(x)
    }

    pub(crate) fn read_values(&self, x: &Tensor) -> Result<Vec<f32>> {
        match x.dtype() {
            DType::F32 => Ok(self.f32("read", x)?.to_vec()),
            DType::Bf16 => Ok(self.bf16("read", x)?.iter().map(|v| v.to_f32()).collect()),
            other => Err(TensorError::Type { op: "read", expected: "f32 or bf16", got: other.name() }),
        }
    }

    pub(crate) fn write_values(&self, x: &mut Tensor, values: &[f32]) -> Result<()> {
        Cpu::expect_values("write", x.shape(), values.len())?;
        self.copy_slice(self.f32_mut("write", x)?, values);
        Ok(())
    }

    pub(crate) fn copy_tensor(&self, op: &'static str, x: &Tensor) -> Result<Tensor> {
        let mut y = self.empty(op, x.shape(), x.dtype())?;
        if x.dtype() == DType::F32 {
            self.copy_slice(self.f32_mut(op, &mut y)?, self.f32(op, x)?);
        } else {
            self.bytes_mut(op, &mut y, x.dtype())?.copy_from_slice(self.bytes(op, x, x.dtype())?);
        }
        Ok(y)
    }

    pub(crate) fn counts(&self) -> (u64, u64) {
        self.pool.counts()
    }

    pub(crate) fn reset_peak_bytes(&self) {
        self.pool.reset_peak();
    }

    pub(crate) fn trim_pool(&self) {
        self.pool.trim();
    }
}
