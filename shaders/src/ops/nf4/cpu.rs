//! Quantising in parallel over blocks, and unpacking ranges of a weight.

use std::ops::Range;

use super::reference::{PADDING, QuantisedScales, block_absmax, dynamic_map, inverse, nearest_code, nest};
use super::{BLOCK, CODEBOOK, NESTED_BLOCK, Nf4Weight, Scales, check};
use crate::cpu::{Cpu, PIECE, simd};
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn quantise(cpu: &Cpu, shape: &[usize], values: &[f32], double_quant: bool) -> Result<Nf4Weight> {
    const OP: &str = "upload_nf4";
    check(shape, values.len())?;
    let mut packed = vec![0u8; values.len().div_ceil(2)];
    let mut absmax = vec![0.0f32; values.len().div_ceil(BLOCK)];
    let pieces = packed.chunks_mut(PIECE / 2).zip(absmax.chunks_mut(PIECE / BLOCK)).zip(values.chunks(PIECE));
    cpu.workers.each(pieces, |((packed, absmax), values)| {
        for ((packed, absmax), block) in packed.chunks_mut(BLOCK / 2).zip(absmax).zip(values.chunks(BLOCK)) {
            *absmax = block_absmax(block);
            let inverse = inverse(*absmax);
            for (byte, pair) in packed.iter_mut().zip(block.chunks(2)) {
                let low = pair.get(1).map_or(PADDING, |value| nearest_code(value * inverse));
                *byte = nearest_code(pair[0] * inverse) << 4 | low;
            }
        }
    });
    let packed = cpu.upload_bytes(OP, &[packed.len()], &packed)?;
    let scales = if double_quant { nest(&absmax) } else { QuantisedScales::Plain(absmax) };
    let scales = match scales {
        QuantisedScales::Plain(absmax) => Scales::Plain(upload(cpu, &absmax)?),
        QuantisedScales::Nested { codes, absmax, offset } => Scales::Nested {
            codes: cpu.upload_bytes(OP, &[codes.len()], &codes)?,
            absmax: upload(cpu, &absmax)?,
            code: upload(cpu, &dynamic_map())?,
            offset,
        },
    };
    Ok(Nf4Weight { shape: shape.to_vec(), packed, scales })
}

fn upload(cpu: &Cpu, values: &[f32]) -> Result<Tensor> {
    let mut x = cpu.empty_f32("upload_nf4", &[values.len()])?;
    cpu.f32_mut("upload_nf4", &mut x)?.copy_from_slice(values);
    Ok(x)
}

/// A weight's storage as slices.
pub(crate) struct View<'a> {
    packed: &'a [u8],
    scales: ScalesView<'a>,
}

enum ScalesView<'a> {
    Plain(&'a [f32]),
    Nested { codes: &'a [u8], absmax: &'a [f32], code: &'a [f32], offset: f32 },
}

impl<'a> View<'a> {
    pub(crate) fn new(cpu: &Cpu, op: &'static str, weight: &'a Nf4Weight) -> Result<View<'a>> {
        let scales = match &weight.scales {
            Scales::Plain(absmax) => ScalesView::Plain(cpu.f32(op, absmax)?),
            Scales::Nested { codes, absmax, code, offset } => ScalesView::Nested {
                codes: cpu.u8(op, codes)?,
                absmax: cpu.f32(op, absmax)?,
                code: cpu.f32(op, code)?,
                offset: *offset,
            },
        };
        Ok(View { packed: cpu.u8(op, &weight.packed)?, scales })
    }

    fn scale(&self, block: usize) -> f32 {
        match &self.scales {
            ScalesView::Plain(absmax) => absmax[block],
            ScalesView::Nested { codes, absmax, code, offset } => {
                code[codes[block] as usize] * absmax[block / NESTED_BLOCK] + offset
            }
        }
    }

    /// Writes elements `range` of the flattened weight.
    pub(crate) fn unpack(&self, range: Range<usize>, out: &mut [f32]) {
        let mut at = range.start;
        let mut out = out;
        while at < range.end {
            let block = at / BLOCK;
            let end = range.end.min((block + 1) * BLOCK);
            let (head, rest) = out.split_at_mut(end - at);
            self.unpack_part(at, self.scale(block), head);
            out = rest;
            at = end;
        }
    }

    /// Elements from `at` on, all of one block.
    fn unpack_part(&self, at: usize, scale: f32, out: &mut [f32]) {
        let (first, out) = if at % 2 == 1 { out.split_at_mut(1) } else { out.split_at_mut(0) };
        if let [first] = first {
            *first = CODEBOOK[(self.packed[at / 2] & 15) as usize] * scale;
        }
        let scaled = CODEBOOK.map(|code| code * scale);
        simd::unpack_nibbles(&self.packed[at.div_ceil(2)..], &scaled, out);
    }
}
