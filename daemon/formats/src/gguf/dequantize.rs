//! ggml's blocks → f32, with ggml's own order of operations, so that the
//! numbers are equal to the last bit.
//!
//! # Source
//! ggml, `ggml-quants.c`: `dequantize_row_*`.

use crate::tensors::StoredType;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Dequantises whole blocks.
///
/// `bytes` must hold exactly the blocks of `out`'s elements: callers size both
/// from [`StoredType::block_elements`] and [`StoredType::block_bytes`].
pub(crate) fn dequantize(stored: StoredType, bytes: &[u8], out: &mut [f32]) {
    debug_assert_eq!(bytes.len() / stored.block_bytes(), out.len() / stored.block_elements());
    match stored {
        StoredType::F32 => {
            let (words, _) = bytes.as_chunks::<4>();
            for (y, word) in out.iter_mut().zip(words) {
                *y = f32::from_le_bytes(*word);
            }
        }
        StoredType::F16 => {
            // The file's bytes need not be aligned for two-byte reads.
            let mut half = [f16::ZERO; 1024];
            for (out, bytes) in out.chunks_mut(1024).zip(bytes.chunks(2048)) {
                let half = &mut half[..out.len()];
                bytemuck::cast_slice_mut(half).copy_from_slice(bytes);
                half.convert_to_f32_slice(out);
            }
        }
        StoredType::BF16 => {
            let (words, _) = bytes.as_chunks::<2>();
            for (y, word) in out.iter_mut().zip(words) {
                *y = bf16::from_le_bytes(*word).to_f32();
            }
        }
        StoredType::Q8_0 => blocks::<34, 32>(bytes, out, q8_0),
        StoredType::Q4_0 => blocks::<18, 32>(bytes, out, q4_0),
        StoredType::Q4_1 => blocks::<20, 32>(bytes, out, q4_1),
        StoredType::Q5_0 => blocks::<22, 32>(bytes, out, q5_0),
        StoredType::Q5_1 => blocks::<24, 32>(bytes, out, q5_1),
        StoredType::Q4K => blocks::<144, 256>(bytes, out, q4_k),
        StoredType::Q5K => blocks::<176, 256>(bytes, out, q5_k),
        StoredType::Q6K => blocks::<210, 256>(bytes, out, q6_k),
    }
}

fn blocks<const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    one: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    let (outs, _) = out.as_chunks_mut::<ELEMENTS>();
    for (block, out) in blocks.iter().zip(outs) {
        one(block, out);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn q8_0(block: &[u8; 34], y: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (y, &q) in y.iter_mut().zip(&block[2..]) {
        *y = f32::from(q as i8) * d;
    }
}

fn q4_0(block: &[u8; 18], y: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (j, &q) in block[2..].iter().enumerate() {
        y[j] = f32::from((q & 0x0f) as i8 - 8) * d;
        y[j + 16] = f32::from((q >> 4) as i8 - 8) * d;
    }
}

fn q4_1(block: &[u8; 20], y: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let m = half_at(block, 2);
    for (j, &q) in block[4..].iter().enumerate() {
        y[j] = f32::from(q & 0x0f) * d + m;
        y[j + 16] = f32::from(q >> 4) * d + m;
    }
}

/// The fifth bits: of element j in bit j.
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

fn q5_0(block: &[u8; 22], y: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let high = fifth_bits(block, 2);
    for (j, &q) in block[6..].iter().enumerate() {
        let h0 = ((high >> j) as u8 & 1) << 4;
        let h1 = ((high >> (j + 16)) as u8 & 1) << 4;
        y[j] = f32::from((q & 0x0f | h0) as i8 - 16) * d;
        y[j + 16] = f32::from((q >> 4 | h1) as i8 - 16) * d;
    }
}

fn q5_1(block: &[u8; 24], y: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let m = half_at(block, 2);
    let high = fifth_bits(block, 4);
    for (j, &q) in block[8..].iter().enumerate() {
        let h0 = ((high >> j) as u8 & 1) << 4;
        let h1 = ((high >> (j + 16)) as u8 & 1) << 4;
        y[j] = f32::from(q & 0x0f | h0) * d + m;
        y[j + 16] = f32::from(q >> 4 | h1) * d + m;
    }
}

/// The 6-bit scale and minimum of sub-block `j` of eight, packed in 12 bytes.
fn scale_and_minimum(j: usize, packed: &[u8]) -> (f32, f32) {
    let (scale, minimum) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 0x0f | (packed[j - 4] >> 6) << 4, packed[j + 4] >> 4 | (packed[j] >> 6) << 4)
    };
    (f32::from(scale), f32::from(minimum))
}

fn q4_k(block: &[u8; 144], y: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let min = half_at(block, 2);
    let packed = &block[4..16];
    // Each run of 32 bytes holds 64 elements: low nibbles, then high ones.
    for (run, (q, y)) in block[16..].chunks(32).zip(y.chunks_mut(64)).enumerate() {
        let (scale, minimum) = scale_and_minimum(2 * run, packed);
        let (d1, m1) = (d * scale, min * minimum);
        let (scale, minimum) = scale_and_minimum(2 * run + 1, packed);
        let (d2, m2) = (d * scale, min * minimum);
        for (l, &q) in q.iter().enumerate() {
            y[l] = d1 * f32::from(q & 0x0f) - m1;
            y[l + 32] = d2 * f32::from(q >> 4) - m2;
        }
    }
}

fn q5_k(block: &[u8; 176], y: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let min = half_at(block, 2);
    let packed = &block[4..16];
    // Byte l of `high` holds the fifth bits of element l of all eight sub-blocks.
    let high = &block[16..48];
    for (run, (q, y)) in block[48..].chunks(32).zip(y.chunks_mut(64)).enumerate() {
        let (scale, minimum) = scale_and_minimum(2 * run, packed);
        let (d1, m1) = (d * scale, min * minimum);
        let (scale, minimum) = scale_and_minimum(2 * run + 1, packed);
        let (d2, m2) = (d * scale, min * minimum);
        for (l, &q) in q.iter().enumerate() {
            let h1 = (high[l] >> (2 * run) & 1) << 4;
            let h2 = (high[l] >> (2 * run + 1) & 1) << 4;
            y[l] = d1 * f32::from((q & 0x0f) + h1) - m1;
            y[l + 32] = d2 * f32::from((q >> 4) + h2) - m2;
        }
    }
}

fn q6_k(block: &[u8; 210], y: &mut [f32; 256]) {
    let d = half_at(block, 208);
    // Two halves of 128 elements: 64 bytes of low nibbles, 32 of high pairs, 8 scales.
    for (half, y) in y.chunks_mut(128).enumerate() {
        let low = &block[64 * half..64 * (half + 1)];
        let high = &block[128 + 32 * half..128 + 32 * (half + 1)];
        let scales = &block[192 + 8 * half..192 + 8 * (half + 1)];
        for l in 0..32 {
            let group = l / 16;
            let scale = |i: usize| d * f32::from(scales[group + 2 * i] as i8);
            let pair = |i: usize| (high[l] >> (2 * i) & 3) << 4;
            let q = |bits: u8| f32::from(bits as i8 - 32);
            y[l] = scale(0) * q(low[l] & 0x0f | pair(0));
            y[l + 32] = scale(1) * q(low[l + 32] & 0x0f | pair(1));
            y[l + 64] = scale(2) * q(low[l] >> 4 | pair(2));
            y[l + 96] = scale(3) * q(low[l + 32] >> 4 | pair(3));
        }
    }
}
