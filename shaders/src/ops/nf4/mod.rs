//! 4-bit NormalFloat weights (QLoRA; Dettmers et al., 2023), in the layout and
//! to the bits of bitsandbytes.
//!
//! The flattened weight is cut into blocks of 64 (the last may be short). A
//! block keeps `absmax = max |w|` and, per element, the index of the code
//! nearest to `w / absmax`; two indices make a byte, the first in the high
//! nibble. With double quantisation the absmax values themselves, less their
//! mean (`offset`), are kept as 8-bit indices into the signed dynamic map, in
//! blocks of 256 with an absmax of their own.

pub(crate) mod conformance;
pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod kernel;
pub mod reference;
#[cfg(test)]
mod tests;
#[cfg(all(test, feature = "gpu"))]
mod tests_gpu;
#[cfg(feature = "gpu")]
pub(crate) mod thresholds;

use super::{
    Device, Operation, Weight,
    device::{Backend, Counting},
};
use crate::error::{Result, shape_error};
use crate::tensor::{DType, Tensor};

pub(crate) fn count_nf4(count: &Counting, shape: &[usize], double_quant: bool) -> Result<Weight> {
    const OP: &str = "nf4";
    let elements: usize = shape.iter().product();
    let blocks = elements.div_ceil(BLOCK);
    let scales = match double_quant {
        false => Scales::Plain(count.f32(OP, &[blocks])?),
        true => Scales::Nested {
            codes: count.take(OP, &[blocks], DType::U8)?,
            absmax: count.f32(OP, &[blocks.div_ceil(NESTED_BLOCK)])?,
            code: count.f32(OP, &[256])?,
            offset: 0.0,
        },
    };
    let packed = count.take(OP, &[elements.div_ceil(2)], DType::U8)?;
    Ok(Weight::Nf4(Nf4Weight { shape: shape.to_vec(), packed, scales }))
}

impl Device {
    /// Quantises a weight `[out, in]` to NF4 in blocks of 64 of the flattened
    /// weight, as bitsandbytes does; `double_quant` quantises the block scales
    /// to 8 bits in blocks of 256.
    pub fn upload_nf4(&self, shape: &[usize], values: &[f32], double_quant: bool) -> Result<Weight> {
        self.timed(Operation::UploadNf4, || match self.backend() {
            Backend::Cpu(cpu) => Ok(Weight::Nf4(cpu::quantise(cpu, shape, values, double_quant)?)),
            #[cfg(feature = "gpu")]
            Backend::Gpu(gpu) => Ok(Weight::Nf4(kernel::upload(gpu, shape, values, double_quant)?)),
            Backend::Counting(count) => count_nf4(count, shape, double_quant),
        })
    }
}

/// Elements of a block.
pub const BLOCK: usize = 64;
/// Blocks whose scales share a nested block.
pub const NESTED_BLOCK: usize = 256;

/// The sixteen values of NF4: quantiles of a normal distribution, scaled to
/// [−1, 1], with an exact zero.
pub const CODEBOOK: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// A weight in NF4.
#[derive(Debug, Clone)]
pub struct Nf4Weight {
    pub(crate) shape: Vec<usize>,
    /// u8, two elements a byte.
    pub(crate) packed: Tensor,
    pub(crate) scales: Scales,
}

/// The absmax of each block.
#[derive(Debug, Clone)]
pub(crate) enum Scales {
    /// f32 `[blocks]`.
    Plain(Tensor),
    /// `absmax[i] = code[codes[i]] · absmax[i / 256] + offset`.
    Nested {
        /// u8 `[blocks]`.
        codes: Tensor,
        /// f32 `[⌈blocks / 256⌉]`.
        absmax: Tensor,
        /// f32 `[256]`: the dynamic map.
        code: Tensor,
        offset: f32,
    },
}

impl Nf4Weight {
    /// `[out, in]`.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Bytes of storage, scales included.
    pub fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::Plain(absmax) => absmax.bytes(),
            Scales::Nested { codes, absmax, code, .. } => codes.bytes() + absmax.bytes() + code.bytes() + 4,
        };
        self.packed.bytes() + scales
    }
}

/// The values must fill the shape.
pub(crate) fn check(shape: &[usize], values: usize) -> Result<()> {
    let expected: usize = shape.iter().product();
    if expected != values || shape.len() != 2 {
        return Err(shape_error("upload_nf4", format!("a weight [out, in] of {values} values"), format!("{shape:?}")));
    }
    Ok(())
}
