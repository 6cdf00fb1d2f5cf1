//! Quantising on this machine's first GPU: the bits of the reference.

use super::reference::{QuantisedScales, dequantise, quantise};
use super::{BLOCK, Nf4Weight, Scales};
use crate::ops::testing::{assert_bits, bits, gpu_for_test, gpu_of, random};
use crate::ops::{Device, Weight};
use crate::random::Key;

fn upload(gpu: &Device, values: &[f32], double: bool) -> Nf4Weight {
    match gpu.upload_nf4(&[1, values.len()], values, double).unwrap() {
        Weight::Nf4(weight) => weight,
        Weight::Dense(_) => panic!("an NF4 weight"),
    }
}

/// Every byte and every scale is the reference's.
#[track_caller]
fn same(gpu: &Device, name: &str, values: &[f32]) {
    for double in [false, true] {
        let want = quantise(values, double);
        let got = upload(gpu, values, double);
        let packed = gpu_of(gpu).read_bytes("test", &got.packed).unwrap();
        let differs = packed.iter().zip(&want.packed).position(|(a, b)| a != b);
        assert!(packed.len() == want.packed.len() && differs.is_none(), "{name}: byte {differs:?} differs");
        match (&got.scales, &want.scales) {
            (Scales::Plain(got), QuantisedScales::Plain(want)) => assert_bits(&gpu.read(got).unwrap(), want),
            (
                Scales::Nested { codes, absmax, offset, .. },
                QuantisedScales::Nested { codes: want, absmax: scales, offset: mean },
            ) => {
                assert_eq!(offset.to_bits(), mean.to_bits(), "{name}: the mean");
                assert!(gpu_of(gpu).read_bytes("test", codes).unwrap() == *want, "{name}: codes differ");
                assert_bits(&gpu.read(absmax).unwrap(), scales);
            }
            _ => panic!("{name}: scales of another kind"),
        }
    }
}

#[test]
fn quantising_gives_the_bits_of_the_reference_at_any_size() {
    let Some(gpu) = gpu_for_test() else { return };
    for len in [0, 1, 2, 7, 63, 64, 65, 127, 4096, 64 * 256 + 1, 64 * 700 + 33] {
        same(&gpu, &format!("{len} uniform"), &random(1, len));
        same(&gpu, &format!("{len} normal"), &Key::new(3, 0, 0).normal_vec(len, 0.02));
    }
}

/// Blocks of magnitude 2^power, some of them with a largest of exactly that.
fn blocks_of(power: i32) -> Vec<f32> {
    let scale = 2f64.powi(power);
    let mut x: Vec<f32> = random(2, 6 * BLOCK).iter().map(|x| (f64::from(*x) * 1.99 * scale) as f32).collect();
    x[5] = scale as f32;
    x[BLOCK..2 * BLOCK].iter_mut().for_each(|x| *x = x.clamp(-(scale as f32), scale as f32));
    x
}

#[test]
fn numbers_of_every_magnitude_keep_the_reference_s_bits() {
    let Some(gpu) = gpu_for_test() else { return };
    for power in [-149, -148, -130, -129, -128, -127, -126, -125, -100, -64, -1, 0, 1, 64, 100, 125, 126, 127] {
        same(&gpu, &format!("2^{power}"), &blocks_of(power));
    }
    // Both ends in one block.
    let mut both = random(3, 2 * BLOCK);
    both[..6].copy_from_slice(&[3e38, 1e-45, -1e-40, 1e-38, -0.0, 0.0]);
    same(&gpu, "both ends", &both);
    // Around where the reciprocal becomes infinite, and where it becomes subnormal.
    for edge in [0x0020_0000u32, 0x0080_0000, 0x7e80_0000, 0x7f00_0000] {
        for step in -3i32..4 {
            let largest = f32::from_bits(edge.saturating_add_signed(step));
            let block: Vec<f32> = (0..BLOCK as i32).map(|i| (i - 31) as f32 / 32.0 * largest).collect();
            same(&gpu, &format!("{largest:e}"), &block);
        }
    }
}

#[test]
fn blocks_of_zeros_ties_infinities_and_nan_are_the_reference_s() {
    let Some(gpu) = gpu_for_test() else { return };
    same(&gpu, "zeros", &[0.0; 5 * BLOCK]);
    let mut x = random(4, 8 * BLOCK);
    x[..BLOCK].fill(0.0);
    x[BLOCK..2 * BLOCK].fill(-0.0);
    same(&gpu, "some zeros", &x);
    // Every threshold itself and its neighbours, in blocks whose largest is 1.
    let mut ties = Vec::new();
    for threshold in super::thresholds::of_codes() {
        ties.extend((-2i32..3).map(|step| f32::from_bits(threshold.to_bits().saturating_add_signed(step))));
    }
    let ties: Vec<f32> = ties.chunks(BLOCK - 1).flat_map(|part| [&[1.0], part].concat()).collect();
    same(&gpu, "ties", &ties);
    // Middles between two codes.
    let middles = super::CODEBOOK.windows(2).map(|pair| 0.5 * (pair[0] + pair[1]));
    same(&gpu, "middles", &[1.0].into_iter().chain(middles).collect::<Vec<_>>());
    for special in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN] {
        let mut x = random(5, 3 * BLOCK + 7);
        x[3] = special;
        x[BLOCK + 9] = 0.0;
        x[BLOCK + 10] = f32::from_bits(0x7fc0_1234);
        x[3 * BLOCK + 6] = special;
        same(&gpu, &format!("{special}"), &x);
    }
}

#[test]
fn scales_far_apart_are_nested_as_the_reference_nests_them() {
    let Some(gpu) = gpu_for_test() else { return };
    // One scale in a hundred is large; all scales are alike; one block.
    let mut x: Vec<f32> = random(6, 600 * BLOCK).iter().map(|x| 0.01 * x).collect();
    for block in (0..600).step_by(97) {
        x[block * BLOCK] = 5.0 + block as f32;
    }
    same(&gpu, "outliers", &x);
    same(&gpu, "alike", &[0.5; 300 * BLOCK]);
    same(&gpu, "one", &[0.25; 3]);
}

#[test]
fn a_weight_in_pieces_has_the_same_bits_and_never_lies_whole_on_the_device() {
    let Some(mut gpu) = gpu_for_test() else { return };
    let values = random(7, 64 * 1000 + 5);
    let want = gpu.read_weight(&Weight::Nf4(upload(&gpu, &values, true))).unwrap();
    gpu.gpu_mut().limits.piece_bytes = 4 * 64 * 90;
    same(&gpu, "pieces", &values);
    gpu.reset_peak();
    let (before, _) = gpu.allocated_bytes();
    let weight = upload(&gpu, &values, true);
    let most = gpu.allocated_bytes().1 - before;
    let kept = weight.bytes() as u64;
    let scales = 4 * (values.len() / BLOCK + 1) as u64;
    assert!(most < kept + scales + gpu_of(&gpu).limits.piece_bytes + 4096, "{most} bytes beside {kept}");
    let got = gpu.read_weight(&Weight::Nf4(weight)).unwrap();
    assert_bits(&got, &want);
    assert_eq!(bits(&got).len(), dequantise(&quantise(&values, true), values.len()).len());
}
