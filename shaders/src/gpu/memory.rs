//! Making, filling, reading and writing tensors.

use cubecl::bytes::Bytes;
use half::bf16;

use super::Gpu;
use super::pool::Lives;
use crate::error::{Result, TensorError, shape_error};
use crate::ops::elementwise;
use crate::tensor::{DType, Reading, Tensor};

impl Gpu {
    fn expect_values(op: &'static str, shape: &[usize], got: usize) -> Result<()> {
        let expected: usize = shape.iter().product();
        if expected != got {
            return Err(shape_error(op, format!("{expected} values for {shape:?}"), format!("{got}")));
        }
        Ok(())
    }

    /// A tensor with these bytes.
    pub(crate) fn upload_bytes(&self, op: &'static str, shape: &[usize], dtype: DType, bytes: &[u8]) -> Result<Tensor> {
        self.upload_living(op, shape, dtype, bytes, Lives::Step)
    }

    pub(super) fn upload_living(
        &self,
        op: &'static str,
        shape: &[usize],
        dtype: DType,
        bytes: &[u8],
        lives: Lives,
    ) -> Result<Tensor> {
        Gpu::expect_values(op, shape, bytes.len() / dtype.bytes())?;
        let tensor = self.uninitialized(op, shape, dtype, lives)?;
        self.put(op, &tensor, bytes)?;
        Ok(tensor)
    }

    /// Writes a tensor's bytes, after everything that was queued before.
    fn put(&self, op: &'static str, tensor: &Tensor, bytes: &[u8]) -> Result<()> {
        let handle = self.handle(op, tensor)?;
        let mut whole = bytes.to_vec();
        whole.resize(handle.size_in_used() as usize, 0);
        self.guarded(op, || self.client.write(&handle, Bytes::from_bytes_vec(whole)))
    }

    pub(crate) fn zeros_f32(&self, op: &'static str, shape: &[usize]) -> Result<Tensor> {
        let mut x = self.empty_f32(op, shape)?;
        elementwise::kernel::fill(self, op, &mut x, 0.0)?;
        Ok(x)
    }

    pub(crate) fn upload_f32(&self, op: &'static str, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        Gpu::expect_values(op, shape, values.len())?;
        self.upload_bytes(op, shape, DType::F32, bytemuck::cast_slice(values))
    }

    pub(crate) fn upload_half(&self, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        Gpu::expect_values("upload_bf16", shape, values.len())?;
        let halves: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
        self.upload_bytes("upload_bf16", shape, DType::Bf16, bytemuck::cast_slice(&halves))
    }

    /// A tensor's bytes, after everything that was queued before.
    pub(crate) fn read_bytes(&self, op: &'static str, x: &Tensor) -> Result<Vec<u8>> {
        let handle = self.handle(op, x)?;
        let bytes = self.guarded(op, || self.client.read_one(handle))?.map_err(|error| self.failed(op, error))?;
        bytes.get(..x.bytes()).map(<[u8]>::to_vec).ok_or_else(|| self.failed(op, "fewer bytes than asked for"))
    }

    /// A tensor's f32 values as they are now; the copy is queued, and what is
    /// returned waits for it.
    pub(crate) fn read_f32_later(&self, op: &'static str, x: &Tensor) -> Result<Reading<'_>> {
        x.expect_type(op, DType::F32)?;
        let (handle, bytes) = (self.handle(op, x)?, x.bytes());
        let copy = self.guarded(op, || self.client.read_async(vec![handle]))?;
        Ok(Box::new(move || {
            let read = self.guarded(op, || cubecl::future::block_on(copy))?.map_err(|error| self.failed(op, error))?;
            let read = read.first().and_then(|read| read.get(..bytes));
            Ok(bytemuck::pod_collect_to_vec(read.ok_or_else(|| self.failed(op, "fewer bytes than asked for"))?))
        }))
    }

    pub(crate) fn read_f32(&self, op: &'static str, x: &Tensor) -> Result<Vec<f32>> {
        x.expect_type(op, DType::F32)?;
        Ok(bytemuck::pod_collect_to_vec(&self.read_bytes(op, x)?))
    }

    pub(crate) fn read_values(&self, x: &Tensor) -> Result<Vec<f32>> {
        match x.dtype() {
            DType::F32 => self.read_f32("read", x),
            DType::Bf16 => {
                let halves: Vec<bf16> = bytemuck::pod_collect_to_vec(&self.read_bytes("read", x)?);
                Ok(halves.iter().map(|x| x.to_f32()).collect())
            }
            other => Err(TensorError::Type { op: "read", expected: "f32 or bf16", got: other.name() }),
        }
    }

    pub(crate) fn write_values(&self, x: &mut Tensor, values: &[f32]) -> Result<()> {
        const OP: &str = "write";
        Gpu::expect_values(OP, x.shape(), values.len())?;
        // Refuses what is shared.
        self.output_f32(OP, x)?;
        self.put(OP, x, bytemuck::cast_slice(values))
    }

    pub(crate) fn copy_tensor(&self, op: &'static str, x: &Tensor) -> Result<Tensor> {
        let mut y = self.empty(op, x.shape(), x.dtype())?;
        elementwise::kernel::copy(self, op, x, &mut y)?;
        Ok(y)
    }

    /// Bytes of live tensors, and the most since the last reset.
    pub(crate) fn counts(&self) -> (u64, u64) {
        self.pool.ledger.counts()
    }

    pub(crate) fn reset_peak_bytes(&self) {
        self.pool.ledger.reset_peak();
    }

    /// Takes pages of so many bytes for what a step makes.
    pub(crate) fn reserve_pages(&self, bytes: u64) -> Result<()> {
        self.pool.reserve(bytes)
    }

    pub(crate) fn trim_pool(&self) {
        self.words.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        self.pool.trim();
    }
}
