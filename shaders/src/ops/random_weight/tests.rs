use super::reference;
#[cfg(feature = "gpu")]
use crate::ops::testing::gpu_for_test;
use crate::ops::testing::{assert_bits, on_each};
use crate::ops::{Device, WeightKind, nf4};
use crate::random::Key;

const KINDS: [WeightKind; 4] = [
    WeightKind::F32,
    WeightKind::Bf16,
    WeightKind::Nf4 { double_quant: false },
    WeightKind::Nf4 { double_quant: true },
];

/// The values that a weight of a kind has after uploading.
fn want(x: &[f32], kind: WeightKind) -> Vec<f32> {
    match kind {
        WeightKind::F32 => x.to_vec(),
        WeightKind::Bf16 => x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect(),
        WeightKind::Nf4 { double_quant } => {
            nf4::reference::dequantise(&nf4::reference::quantise(x, double_quant), x.len())
        }
    }
}

#[test]
fn every_kind_is_the_reference_s_numbers_on_any_threads() {
    for shape in [[1, 1], [3, 7], [5, 64], [33, 1001]] {
        let key = Key::new(3 << 33 | 5, 2, 9);
        let x = reference::uniform(shape[0] * shape[1], 0.035, key);
        assert_bits(&x, &key.symmetric_vec(x.len(), 0.035));
        for kind in KINDS {
            let got =
                on_each(|cpu| vec![cpu.read_weight(&cpu.random_weight(&shape, 0.035, key, kind).unwrap()).unwrap()]);
            assert_bits(&got[0], &want(&x, kind));
        }
    }
}

#[cfg(feature = "gpu")]
#[test]
fn a_gpu_makes_the_same_bits_in_pieces_too() {
    let Some(mut gpu) = gpu_for_test() else { return };
    for piece_bytes in [64 << 20, 4 * 64 * 20] {
        gpu.gpu_mut().limits.piece_bytes = piece_bytes;
        for shape in [[1, 1], [1, 2], [3, 7], [5, 64], [33, 1001]] {
            let key = Key::new(3 << 33 | 5, 2, 9);
            let x = reference::uniform(shape[0] * shape[1], 0.035, key);
            for kind in KINDS {
                let got = gpu.read_weight(&gpu.random_weight(&shape, 0.035, key, kind).unwrap()).unwrap();
                // An NF4 weight against an upload: unpacking need not give the host's last bit.
                match kind {
                    WeightKind::Nf4 { double_quant } => {
                        let uploaded = gpu.upload_nf4(&shape, &x, double_quant).unwrap();
                        assert_bits(&got, &gpu.read_weight(&uploaded).unwrap());
                    }
                    dense => assert_bits(&got, &want(&x, dense)),
                }
            }
        }
    }
}

#[test]
fn the_numbers_fill_their_range_evenly() {
    let x = reference::uniform(100_000, 2.0, Key::new(1, 0, 0));
    assert!(x.iter().all(|x| (-2.0..2.0).contains(x)));
    let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / 1e5;
    let square = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 1e5;
    assert!(mean.abs() < 0.02 && (square - 4.0 / 3.0).abs() < 0.02, "mean {mean}, mean square {square}");
}

#[test]
fn what_is_no_matrix_of_finite_numbers_is_refused() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let key = Key::new(1, 0, 0);
    assert!(cpu.random_weight(&[4], 1.0, key, WeightKind::F32).is_err());
    assert!(cpu.random_weight(&[2, 2], f32::NAN, key, WeightKind::Bf16).is_err());
}
