//! The definition: quantisation and its reverse in plain loops, with the order
//! of operations that gives bitsandbytes' bits.

use finetuned_plugin_api::program::codes;

use super::{BLOCK, CODEBOOK, NESTED_BLOCK};

/// A quantised weight on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised {
    pub packed: Vec<u8>,
    pub scales: QuantisedScales,
}

#[derive(Debug, Clone, PartialEq)]
pub enum QuantisedScales {
    Plain(Vec<f32>),
    Nested { codes: Vec<u8>, absmax: Vec<f32>, offset: f32 },
}

/// Quantises a flattened weight.
pub fn quantise(values: &[f32], double_quant: bool) -> Quantised {
    let mut indices = Vec::with_capacity(values.len() + 1);
    let mut absmax = Vec::with_capacity(values.len().div_ceil(BLOCK));
    for block in values.chunks(BLOCK) {
        let largest = block_absmax(block);
        let inverse = inverse(largest);
        indices.extend(block.iter().map(|value| nearest_code(value * inverse)));
        absmax.push(largest);
    }
    let packed = indices.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).copied().unwrap_or(PADDING)).collect();
    let scales = if double_quant { nest(&absmax) } else { QuantisedScales::Plain(absmax) };
    Quantised { packed, scales }
}

/// The code of 0, which fills the last byte of a weight of odd size.
pub(crate) const PADDING: u8 = 7;

/// max |x|; NaN stays NaN, so that it is not hidden.
pub(crate) fn block_absmax(block: &[f32]) -> f32 {
    block.iter().fold(0.0f32, |largest, x| if x.abs() > largest || x.is_nan() { x.abs() } else { largest })
}

/// What a block's values are multiplied by; a block of zeros stays one.
pub(crate) fn inverse(absmax: f32) -> f32 {
    if absmax == 0.0 { 0.0 } else { 1.0 / absmax }
}

/// The index of the nearest code; the lower one of two equally near. NaN has
/// index 0, which its block's absmax of NaN makes NaN again.
pub(crate) fn nearest_code(x: f32) -> u8 {
    let x = x.clamp(-1.0, 1.0);
    let mut best = 0;
    for (index, code) in CODEBOOK.iter().enumerate() {
        if (x - code).abs() < (x - CODEBOOK[best]).abs() {
            best = index;
        }
    }
    best as u8
}

/// Quantises the scales: less their mean, in blocks of 256, to the nearest
/// value of the dynamic map.
pub(crate) fn nest(absmax: &[f32]) -> QuantisedScales {
    let map = dynamic_map();
    let offset = mean(absmax);
    let mut codes = Vec::with_capacity(absmax.len());
    let mut nested = Vec::new();
    for block in absmax.chunks(NESTED_BLOCK) {
        let centred: Vec<f32> = block.iter().map(|x| x - offset).collect();
        let largest = block_absmax(&centred);
        codes.extend(centred.iter().map(|x| nearest_in(&map, x * inverse(largest))));
        nested.push(largest);
    }
    QuantisedScales::Nested { codes, absmax: nested, offset }
}

/// The index of the nearest value in an ascending map; the lower one of two
/// equally near.
///
/// bitsandbytes' CPU code reads a table of 65,536 entries over [−1, 1], so a
/// number within half a step of the middle between two values takes the side of
/// its table entry; that is its code, so it is ours.
pub(crate) fn nearest_in(map: &[f32], x: f32) -> u8 {
    let entry = ((x.clamp(-1.0, 1.0) + 1.0) * TABLE_STEPS + 0.5).floor();
    let x = entry / TABLE_STEPS - 1.0;
    let above = map.partition_point(|value| *value <= x);
    let below = above.saturating_sub(1);
    let nearer_above = above < map.len() && map[above] - x < x - map[below];
    (if nearer_above { above } else { below }) as u8
}

/// Half of the steps between −1 and 1 in bitsandbytes' table.
const TABLE_STEPS: f32 = 32767.5;

/// bitsandbytes' signed dynamic map of 8 bits (Dettmers, 2015,
/// "8-Bit Approximations for Parallelism in Deep Learning").
pub fn dynamic_map() -> Vec<f32> {
    (0..=u8::MAX).map(|code| codes::value(code, true)).collect()
}

/// The mean as PyTorch computes it on a CPU (`cascade_sum` of ATen's
/// SumKernel.cpp, in vectors of eight): the offset enters every scale, so its
/// last bit counts. Four running sums of vectors, each in four levels so that
/// small numbers meet small ones.
pub(crate) fn mean(x: &[f32]) -> f32 {
    const LANES: usize = 8;
    const ROWS: usize = 4;
    const LEVELS: usize = 4;
    const WIDTH: usize = LANES * ROWS;
    let add = |sum: &mut [f32], x: &[f32]| sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
    let vectors = x.len() / LANES;
    let steps = vectors / ROWS;
    let log = usize::BITS - steps.saturating_sub(1).leading_zeros();
    let power = (log / LEVELS as u32).max(4);
    let mask = (1usize << power) - 1;
    let mut levels = [[0.0f32; WIDTH]; LEVELS];
    let whole = steps >> power << power;
    for (step, x) in x.chunks_exact(WIDTH).enumerate() {
        add(&mut levels[0], x);
        let done = step + 1;
        if done > whole || done & mask != 0 {
            continue;
        }
        for level in 1..LEVELS {
            let below = std::mem::replace(&mut levels[level - 1], [0.0; WIDTH]);
            add(&mut levels[level], &below);
            if done & (mask << (level as u32 * power)) != 0 {
                break;
            }
        }
    }
    let [mut sums, upper @ ..] = levels;
    for level in &upper {
        add(&mut sums, level);
    }
    let (first, others) = sums.split_at_mut(LANES);
    for vector in x[steps * WIDTH..vectors * LANES].chunks_exact(LANES) {
        add(first, vector);
    }
    for other in others.chunks_exact(LANES) {
        add(first, other);
    }
    let sum = x[vectors * LANES..].iter().fold(0.0, |sum, x| sum + x);
    first.iter().fold(sum, |sum, x| sum + x) / x.len() as f32
}

/// The absmax of each block.
pub fn unpack_scales(scales: &QuantisedScales) -> Vec<f32> {
    match scales {
        QuantisedScales::Plain(absmax) => absmax.clone(),
        QuantisedScales::Nested { codes, absmax, offset } => {
            let map = dynamic_map();
            codes.iter().enumerate().map(|(i, c)| map[*c as usize] * absmax[i / NESTED_BLOCK] + offset).collect()
        }
    }
}

/// The first `len` values.
pub fn dequantise(weight: &Quantised, len: usize) -> Vec<f32> {
    let scales = unpack_scales(&weight.scales);
    (0..len)
        .map(|i| {
            let byte = weight.packed[i / 2];
            let index = if i % 2 == 0 { byte >> 4 } else { byte & 15 };
            CODEBOOK[index as usize] * scales[i / BLOCK]
        })
        .collect()
}
