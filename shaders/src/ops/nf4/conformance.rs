//! Checks of this operation against its plain reference.

use super::reference::{QuantisedScales, dequantise as from_bits, dynamic_map, quantise as to_bits};
use super::{BLOCK, CODEBOOK, NESTED_BLOCK, Nf4Weight, Scales};
use crate::error::Result;
use crate::ops::check::{Check, Pairs, random};
use crate::ops::{Device, Weight};
use crate::tensor::Tensor;

pub(crate) const CHECKS: &[Check] = &[
    Check { operation: "nf4_quantise", tolerance: 0.0, products: false, run: quantise },
    Check { operation: "nf4", tolerance: 1e-6, products: false, run: dequantise },
];

/// Whole blocks, an odd number of elements, more than a nested block.
const SHAPES: [(usize, usize); 5] = [(1, 1), (2, 64), (3, 7), (33, 65), (300, 64)];

fn dequantise(ops: &Device) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (rows, columns) in SHAPES {
        let values = random(1, rows * columns);
        for double in [false, true] {
            let weight = ops.upload_nf4(&[rows, columns], &values, double)?;
            let want = from_bits(&to_bits(&values, double), values.len());
            pairs.push((ops.read_weight(&weight)?, want));
        }
    }
    Ok(pairs)
}

/// Numbers that a device's own rounding would quantise to other codes: blocks of
/// zeros, middles between two codes, the largest and the least magnitudes,
/// infinities and NaN.
fn awkward() -> Vec<f32> {
    let mut x = random(2, 300 * BLOCK + 9);
    x[..BLOCK].fill(0.0);
    x[BLOCK] = 1.0;
    for (x, codes) in x[BLOCK + 1..].iter_mut().zip(CODEBOOK.windows(2)) {
        *x = 0.5 * (codes[0] + codes[1]);
    }
    for (block, power) in [(2, -149), (3, -128), (4, -127), (5, -126), (6, -64), (7, 64)] {
        let scale = 2f64.powi(power);
        x[block * BLOCK..(block + 1) * BLOCK].iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
    }
    x
}

/// The same with magnitudes whose mean is none.
fn extreme() -> Vec<f32> {
    let mut x = random(3, 6 * BLOCK);
    for (block, power) in [(1, 126), (2, 127)] {
        let scale = 2f64.powi(power);
        x[block * BLOCK..(block + 1) * BLOCK].iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
    }
    x[3 * BLOCK + 5] = f32::INFINITY;
    x[4 * BLOCK + 6] = f32::NEG_INFINITY;
    x[5 * BLOCK + 7] = f32::NAN;
    x
}

/// The parts of a weight, each as numbers that tell its bits.
fn parts(ops: &Device, weight: &Nf4Weight) -> Result<Vec<Vec<f32>>> {
    // Codes times scales of one are the codes' values.
    let blocks = weight.shape.iter().product::<usize>().div_ceil(BLOCK);
    let ones = |count: usize| ops.upload(&[count], &vec![1.0; count]);
    let read = |packed: &Tensor, shape: &[usize], scales: Scales| {
        ops.read_weight(&Weight::Nf4(Nf4Weight { shape: shape.to_vec(), packed: packed.clone(), scales }))
    };
    let mut parts = vec![read(&weight.packed, &weight.shape, Scales::Plain(ones(blocks)?))?];
    match &weight.scales {
        Scales::Plain(absmax) => parts.push(ops.read(absmax)?),
        Scales::Nested { codes, absmax, code, offset } => {
            parts.extend([ops.read(absmax)?, vec![*offset]]);
            // A weight of ones shows what its scales' codes say.
            let shape = [blocks, BLOCK];
            let Weight::Nf4(all) = ops.upload_nf4(&shape, &vec![1.0; blocks * BLOCK], false)? else {
                return Ok(parts);
            };
            let absmax = ones(blocks.div_ceil(NESTED_BLOCK))?;
            let scales = Scales::Nested { codes: codes.clone(), absmax, code: code.clone(), offset: 0.0 };
            parts.push(read(&all.packed, &shape, scales)?.into_iter().step_by(BLOCK).collect());
        }
    }
    Ok(parts)
}

fn quantise(ops: &Device) -> Result<Pairs> {
    let mut inputs: Vec<Vec<f32>> = SHAPES.iter().map(|(rows, columns)| random(1, rows * columns)).collect();
    inputs.extend([awkward(), extreme()]);
    let mut pairs = Vec::new();
    for values in inputs {
        for double in [false, true] {
            let Weight::Nf4(weight) = ops.upload_nf4(&[1, values.len()], &values, double)? else {
                continue;
            };
            let want = to_bits(&values, double);
            let nibble = |i: usize| [want.packed[i / 2] >> 4, want.packed[i / 2] & 15][i % 2];
            let mut wanted = vec![(0..values.len()).map(|i| CODEBOOK[nibble(i) as usize]).collect()];
            match want.scales.clone() {
                QuantisedScales::Plain(absmax) => wanted.push(absmax),
                QuantisedScales::Nested { codes, absmax, offset } => {
                    let map = dynamic_map();
                    wanted.extend([absmax, vec![offset], codes.iter().map(|code| map[*code as usize]).collect()]);
                }
            }
            let parts = parts(ops, &weight)?;
            // A weight of another kind has other parts.
            let missing = parts.len().abs_diff(wanted.len());
            pairs.push((vec![missing as f32], vec![0.0]));
            pairs.extend(parts.into_iter().zip(wanted));
        }
    }
    Ok(pairs)
}
