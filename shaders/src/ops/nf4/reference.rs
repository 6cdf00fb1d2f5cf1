//! The definition: quantisation and its reverse in plain loops, with the order
//! of operations that gives bitsandbytes' bits.

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
        indices.extend(block.iter().map(|value| nearest_code(value * (1.0 / largest))));
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

/// The index of the nearest code; the lower one of two equally near. NaN, as
/// 0/0 in a block of zeros, has index 0, which its absmax of 0 makes zero
/// again.
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
    let mean = absmax.iter().map(|x| f64::from(*x)).sum::<f64>() / absmax.len().max(1) as f64;
    let offset = mean as f32;
    let mut codes = Vec::with_capacity(absmax.len());
    let mut nested = Vec::new();
    for block in absmax.chunks(NESTED_BLOCK) {
        let centred: Vec<f32> = block.iter().map(|x| x - offset).collect();
        let largest = block_absmax(&centred);
        codes.extend(centred.iter().map(|x| nearest_in(&map, x / largest)));
        nested.push(largest);
    }
    QuantisedScales::Nested { codes, absmax: nested, offset }
}

/// The index of the nearest value in an ascending map; the lower one of two
/// equally near.
fn nearest_in(map: &[f32], x: f32) -> u8 {
    let above = map.partition_point(|value| *value <= x);
    let below = above.saturating_sub(1);
    let nearer_above = above < map.len() && map[above] - x < x - map[below];
    (if nearer_above { above } else { below }) as u8
}

/// bitsandbytes' signed dynamic map of 8 bits (Dettmers, 2015,
/// "8-Bit Approximations for Parallelism in Deep Learning"): seven decades,
/// each cut twice as fine as the one below it.
pub fn dynamic_map() -> Vec<f32> {
    let mut map = vec![0.0, 1.0];
    for exponent in 0..7 {
        let steps = 1usize << exponent;
        let step = (1.0f32 - 0.1) / steps as f32;
        // As torch.linspace: the upper half is counted down from the end.
        let edge = |i: usize| {
            if i < (steps + 1) / 2 { 0.1 + step * i as f32 } else { 1.0 - step * (steps - i) as f32 }
        };
        let scale = 10f64.powi(exponent - 6) as f32;
        for i in 0..steps {
            let value = scale * ((edge(i) + edge(i + 1)) / 2.0);
            map.extend([value, -value]);
        }
    }
    map.sort_by(f32::total_cmp);
    map
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
