use half::{bf16, f16};

use super::narrow::{narrow, renarrow, widen};
use crate::Device;
use crate::gpu::TensorCores;
use crate::ops::Weight;
use crate::ops::linear::kernel::unpacked_rows;
use crate::ops::nf4::kernel::unpack_narrow;
use crate::ops::testing::{bits, gpu_for_test, gpu_of, random};
use crate::tensor::Tensor;

/// The 16-bit numbers of a tensor.
fn halves(gpu: &Device, x: &Tensor) -> Vec<u16> {
    bytemuck::pod_collect_to_vec(&gpu_of(gpu).read_bytes("read", x).unwrap())
}

/// Ties, both sides of every limit, subnormal numbers, what is no number.
fn awkward() -> Vec<f32> {
    let mut values = vec![0.0, 1.0, 65504.0, 65519.996, 65520.0, 65536.0, 1e38, f32::INFINITY, f32::MAX];
    values.extend([6.1e-5, 6.103_515_6e-5, 6.097e-5, 5.96e-8, 2.98e-8, 2.980_232_5e-8, 1e-9, f32::MIN_POSITIVE]);
    // Halfway between two neighbours of either type, and next to it.
    for exponent in [100u32, 112, 113, 114, 127, 140, 142] {
        for low in [0x0fff, 0x1000, 0x1001, 0x3000, 0x7fff, 0x8000, 0x8001, 0x1_8000, 0x7f_ffff] {
            values.push(f32::from_bits(exponent << 23 | low));
        }
    }
    values.extend(random(5, 4000).iter().map(|x| x * 1e-4));
    values.extend(random(6, 4001).iter().map(|x| x * 70_000.0));
    let negative: Vec<f32> = values.iter().map(|x| -x).collect();
    values.extend(negative);
    values
}

#[test]
fn bf16_is_rounded_as_the_cpu_rounds_it() {
    let Some(gpu) = gpu_for_test() else { return };
    let mut values = awkward();
    values.push(f32::NAN);
    values.push(f32::from_bits(0x7f80_0001));
    let x = gpu.upload(&[values.len()], &values).unwrap();
    let got = halves(&gpu, &narrow(gpu_of(&gpu), "test", TensorCores::Bf16, &x).unwrap().values);
    for (got, x) in got.iter().zip(&values) {
        assert_eq!(*got, bf16::from_f32(*x).to_bits(), "{x:e}");
    }
}

#[test]
fn f16_is_scaled_to_its_range_and_rounded_as_the_cpu_rounds_it() {
    let Some(gpu) = gpu_for_test() else { return };
    let awkward: Vec<f32> = awkward().into_iter().filter(|x| x.is_finite()).collect();
    let largest = |list: &[f32]| list.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    // As they are, gradients that f16 has no numbers for, one tensor of many
    // pieces, nothing but zeros.
    let cases = [
        awkward.iter().copied().filter(|x| x.abs() < 32768.0).collect::<Vec<f32>>(),
        awkward.clone(),
        random(7, 999).iter().map(|x| x * 1e-20).collect(),
        random(8, 70_001),
        vec![0.0; 5],
    ];
    for values in cases {
        let x = gpu.upload(&[values.len()], &values).unwrap();
        let narrowed = narrow(gpu_of(&gpu), "test", TensorCores::F16, &x).unwrap();
        let scale = gpu.read(narrowed.scale.as_ref().unwrap()).unwrap();
        assert_eq!(scale[0] * scale[1], 1.0);
        let most = largest(&values) * scale[0];
        assert!(most == 0.0 || (16384.0..32768.0).contains(&most), "{most}");
        for (got, x) in halves(&gpu, &narrowed.values).iter().zip(&values) {
            let want = f16::from_f32(x * scale[0]);
            // A driver may take subnormal inputs for zero.
            assert!(*got == want.to_bits() || (x * scale[0]).abs() < f32::MIN_POSITIVE, "{x:e}: {got:x}, {want:?}");
        }
    }
}

#[test]
fn what_is_no_number_stays_none() {
    let Some(gpu) = gpu_for_test() else { return };
    for wrong in [f32::NAN, f32::INFINITY] {
        let x = gpu.upload(&[3], &[1.0, wrong, 2.0]).unwrap();
        let narrowed = narrow(gpu_of(&gpu), "test", TensorCores::F16, &x).unwrap();
        let got = f16::from_bits(halves(&gpu, &narrowed.values)[1]);
        assert!(!got.is_finite(), "{wrong} became {got}");
    }
}

#[test]
fn widened_numbers_are_the_same_numbers() {
    let Some(gpu) = gpu_for_test() else { return };
    let values: Vec<f32> = (0..=0xffffu32).map(|bits| f16::from_bits(bits as u16).to_f32()).collect();
    let words: Vec<u16> = (0..=0xffff).collect();
    for (dtype, want) in [
        (crate::DType::F16, values),
        (crate::DType::Bf16, words.iter().map(|bits| bf16::from_bits(*bits).to_f32()).collect()),
    ] {
        let x = gpu_of(&gpu).upload_bytes("test", &[words.len()], dtype, bytemuck::cast_slice(&words)).unwrap();
        let got = gpu.read(&widen(gpu_of(&gpu), "test", &x, 0..x.rows()).unwrap()).unwrap();
        for (got, want) in got.iter().zip(&want) {
            assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{got:e} {want:e}");
        }
    }
}

#[test]
fn weights_reach_the_cores_in_their_type() {
    let Some(gpu) = gpu_for_test() else { return };
    // Odd numbers of elements, more than a nested block.
    for (rows, columns) in [(1, 1), (3, 7), (33, 65), (300, 64)] {
        let values = random(1, rows * columns);
        let shape = [rows, columns];
        for kind in [TensorCores::Bf16, TensorCores::F16] {
            for double in [false, true] {
                let weight = gpu.upload_nf4(&shape, &values, double).unwrap();
                let want = gpu.read_weight(&weight).unwrap();
                let Weight::Nf4(weight) = weight else { panic!("no NF4") };
                let mut got = Vec::new();
                // The second part begins with a whole word.
                for part in [0..rows.min(64), rows.min(64)..rows] {
                    let narrow = unpack_narrow(gpu_of(&gpu), "test", kind, &weight, part).unwrap();
                    got.extend(gpu.read(&widen(gpu_of(&gpu), "test", &narrow, 0..narrow.rows()).unwrap()).unwrap());
                }
                let want: Vec<f32> = match kind {
                    TensorCores::Bf16 => want.iter().map(|x| bf16::from_f32(*x).to_f32()).collect(),
                    TensorCores::F16 => want.iter().map(|x| f16::from_f32(*x).to_f32()).collect(),
                };
                assert_eq!(bits(&got), bits(&want), "{shape:?} {kind:?} {double}");
            }
            let dense = Weight::Dense(gpu.upload_bf16(&shape, &values).unwrap());
            let want = gpu.read(unpacked_rows(gpu_of(&gpu), "test", &dense, 0..rows).unwrap().as_ref()).unwrap();
            let Weight::Dense(tensor) = &dense else { panic!("not dense") };
            let mut got = Vec::new();
            for part in [0..rows.min(64), rows.min(64)..rows] {
                let narrow = renarrow(gpu_of(&gpu), "test", kind, tensor, part).unwrap();
                got.extend(gpu.read(&widen(gpu_of(&gpu), "test", &narrow, 0..narrow.rows()).unwrap()).unwrap());
            }
            assert!(got.iter().zip(&want).all(|(got, want)| (got - want).abs() < 3e-8), "{shape:?} {kind:?}");
        }
    }
}
