//! Bits against bitsandbytes' (tests/golden/nf4), awkward sizes, errors.

use safetensors::SafeTensors;

use super::reference::{Quantised, QuantisedScales, dequantise, dynamic_map, quantise};
use super::*;
use crate::Device;
use crate::ops::Weight;
use crate::ops::testing::{assert_bits, cpu_of, random};

const GOLDEN: &[u8] = include_bytes!("../../../tests/golden/nf4/nf4.safetensors");

fn golden_f32(name: &str) -> Vec<f32> {
    let file = SafeTensors::deserialize(GOLDEN).unwrap();
    file.tensor(name).unwrap().data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn golden_u8(name: &str) -> Vec<u8> {
    SafeTensors::deserialize(GOLDEN).unwrap().tensor(name).unwrap().data().to_vec()
}

#[test]
fn the_codebooks_are_those_of_bitsandbytes() {
    assert_bits(&CODEBOOK, &golden_f32("codebook"));
    assert_bits(&dynamic_map(), &golden_f32("double.nested_code"));
}

#[test]
fn single_quantisation_gives_the_bits_of_bitsandbytes() {
    let weight = golden_f32("weight");
    let got = quantise(&weight, false);
    assert!(got.packed == golden_u8("single.packed"), "packed bytes differ");
    let QuantisedScales::Plain(absmax) = &got.scales else { panic!("plain scales") };
    assert_bits(absmax, &golden_f32("single.absmax"));
    assert_bits(&dequantise(&got, weight.len()), &golden_f32("single.dequantized"));
}

#[test]
fn double_quantisation_gives_the_bits_of_bitsandbytes() {
    let weight = golden_f32("weight");
    let got = quantise(&weight, true);
    assert!(got.packed == golden_u8("double.packed"), "packed bytes differ");
    let QuantisedScales::Nested { codes, absmax, offset } = &got.scales else { panic!("nested scales") };
    assert_eq!(offset.to_bits(), golden_f32("double.nested_offset")[0].to_bits());
    assert!(*codes == golden_u8("double.absmax"), "nested codes differ");
    assert_bits(absmax, &golden_f32("double.nested_absmax"));
    assert_bits(&dequantise(&got, weight.len()), &golden_f32("double.dequantized"));
}

#[test]
fn the_device_gives_the_bits_of_bitsandbytes_and_keeps_no_f32_copy() {
    let cpu = Device::cpu(Some(2)).unwrap();
    let weight = golden_f32("weight");
    for (double, name) in [(false, "single"), (true, "double")] {
        let w = cpu.upload_nf4(&[96, 192], &weight, double).unwrap();
        assert_bits(&cpu.read_weight(&w).unwrap(), &golden_f32(&format!("{name}.dequantized")));
        let blocks = weight.len() / BLOCK;
        let scales = if double { blocks + 4 * blocks.div_ceil(NESTED_BLOCK) + 4 * 256 + 4 } else { 4 * blocks };
        assert_eq!(w.bytes(), weight.len() / 2 + scales);
        let Weight::Nf4(w) = w else { panic!("an NF4 weight") };
        assert!(
            cpu_of(&cpu).u8("test", &w.packed).unwrap() == golden_u8(&format!("{name}.packed")),
            "packed bytes differ"
        );
    }
}

#[test]
fn sizes_that_are_no_multiple_of_a_block_work() {
    let cpu = Device::cpu(Some(2)).unwrap();
    for (rows, columns) in [(1, 1), (1, 63), (3, 43), (7, 129), (5, 64), (33, 1000), (129, 515)] {
        let values = random(1, rows * columns);
        for double in [false, true] {
            let plain: Quantised = quantise(&values, double);
            let want = dequantise(&plain, values.len());
            let w = cpu.upload_nf4(&[rows, columns], &values, double).unwrap();
            assert_bits(&cpu.read_weight(&w).unwrap(), &want);
            // Any range, not only whole blocks.
            let Weight::Nf4(w) = &w else { panic!("an NF4 weight") };
            let view = cpu::View::new(cpu_of(&cpu), "test", w).unwrap();
            for (from, to) in
                [(0, values.len()), (values.len() / 3, values.len()), (values.len() / 2, values.len() / 2)]
            {
                let mut part = vec![0.0; to - from];
                view.unpack(from..to, &mut part);
                assert_bits(&part, &want[from..to]);
            }
        }
    }
}

#[test]
fn the_error_of_a_normal_weight_is_that_of_four_bits() {
    let values = crate::random::Key::new(3, 0, 0).normal_vec(64 * 200, 0.02);
    for double in [false, true] {
        let back = dequantise(&quantise(&values, double), values.len());
        let error: f64 = values.iter().zip(&back).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let size: f64 = values.iter().map(|a| f64::from(*a).powi(2)).sum();
        let relative = (error / size).sqrt();
        assert!((0.05..0.12).contains(&relative), "relative error {relative}");
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let cpu = Device::cpu(Some(1)).unwrap();
    assert!(cpu.upload_nf4(&[3, 4], &[0.0; 11], false).is_err());
    assert!(cpu.upload_nf4(&[12], &[0.0; 12], false).is_err());
}
