//! Panels of a weight on this machine's first GPU, against the reference.

use super::kernel::{panels, panels_of, unpacked_rows};
use super::reference;
use crate::ops::check::distance;
use crate::ops::testing::{assert_bits, gpu_for_test, gpu_of, random};
use crate::ops::{Device, Weight, WeightKind};

const KINDS: [WeightKind; 4] = [
    WeightKind::F32,
    WeightKind::Bf16,
    WeightKind::Nf4 { double_quant: false },
    WeightKind::Nf4 { double_quant: true },
];

fn weight(ops: &Device, kind: WeightKind, shape: [usize; 2], values: &[f32]) -> Weight {
    match kind {
        WeightKind::F32 => Weight::Dense(ops.upload(&shape, values).unwrap()),
        WeightKind::Bf16 => Weight::Dense(ops.upload_bf16(&shape, values).unwrap()),
        WeightKind::Nf4 { double_quant } => ops.upload_nf4(&shape, values, double_quant).unwrap(),
    }
}

#[track_caller]
fn assert_within(name: &str, tolerance: f64, got: &[f32], want: &[f32]) {
    let worst = distance(got, want);
    assert!(worst <= tolerance, "{name}: {worst:e} is more than {tolerance:e}");
}

#[test]
fn any_rows_of_a_weight_are_those_of_the_whole() {
    let Some(gpu) = gpu_for_test() else { return };
    for shape in [[7, 3], [33, 43], [65, 65], [300, 8]] {
        let values = random(1, shape[0] * shape[1]);
        for kind in KINDS {
            let weight = weight(&gpu, kind, shape, &values);
            let whole = gpu.read_weight(&weight).unwrap();
            for rows in [0..shape[0], 0..1, 1..2, 2..shape[0], 3..3, shape[0] / 2..shape[0] - 1] {
                let part = unpacked_rows(gpu_of(&gpu), "test", &weight, rows.clone()).unwrap();
                assert_eq!(part.shape(), [rows.len(), shape[1]]);
                assert_bits(&gpu.read(&part).unwrap(), &whole[rows.start * shape[1]..rows.end * shape[1]]);
            }
        }
    }
}

#[test]
fn panels_cover_the_rows_and_are_no_larger_than_allowed() {
    let Some(mut gpu) = gpu_for_test() else { return };
    for (rows, columns, bytes) in [(1, 1, 4), (1000, 16, 4 * 16 * 200), (1000, 16, 1 << 30), (130, 5, 1), (64, 9, 8)] {
        gpu.gpu_mut().limits.panel_bytes = bytes;
        let all: Vec<_> = panels(gpu_of(&gpu), (rows, columns)).collect();
        assert!(all.first().is_some_and(|p| p.start == 0) && all.last().is_some_and(|p| p.end == rows));
        assert!(all.windows(2).all(|pair| pair[0].end == pair[1].start));
        let most = all.iter().map(|p| p.len()).max().unwrap_or(0);
        assert!(most <= 64 || 4 * (most * columns) as u64 <= bytes, "{most} rows of {columns}");
    }
    // A weight that is f32 needs no panels.
    let dense = weight(&gpu, WeightKind::F32, [200, 3], &random(1, 600));
    assert_eq!(panels_of(gpu_of(&gpu), "test", &dense).unwrap().len(), 1);
}

#[test]
fn products_in_panels_agree_with_the_reference() {
    let Some(mut gpu) = gpu_for_test() else { return };
    let tolerance = f64::max(1e-5, 4.0 * gpu.info().product_rounding);
    for (n, inputs, outputs, rank) in [(1, 64, 65, 4), (33, 43, 300, 1), (40, 16, 577, 8)] {
        let (x, w, dy) = (random(1, n * inputs), random(2, outputs * inputs), random(3, n * outputs));
        let (before, a, b) = (random(4, n * inputs), random(5, rank * inputs), random(6, outputs * rank));
        for kind in KINDS {
            gpu.gpu_mut().limits.panel_bytes = 4 * (64 * inputs) as u64;
            let weight = weight(&gpu, kind, [outputs, inputs], &w);
            let values = gpu.read_weight(&weight).unwrap();
            let name = format!("{kind:?} {outputs}x{inputs}");
            let (xt, dyt) = (gpu.upload(&[n, inputs], &x).unwrap(), gpu.upload(&[n, outputs], &dy).unwrap());
            let y = gpu.read(&gpu.linear(&xt, &weight).unwrap()).unwrap();
            assert_within(&name, tolerance, &y, &reference::forward(&x, &values, n, inputs, outputs));
            let dx = reference::backward(&dy, &values, n, inputs, outputs);
            let got = gpu.read(&gpu.linear_backward(&dyt, &weight, None).unwrap()).unwrap();
            assert_within(&name, tolerance, &got, &dx);
            let into = Some(gpu.upload(&[n, inputs], &before).unwrap());
            let got = gpu.read(&gpu.linear_backward(&dyt, &weight, into).unwrap()).unwrap();
            let want: Vec<f32> = dx.iter().zip(&before).map(|(a, b)| a + b).collect();
            assert_within(&name, tolerance, &got, &want);
            let (at, bt) = (gpu.upload(&[rank, inputs], &a).unwrap(), gpu.upload(&[outputs, rank], &b).unwrap());
            let got = gpu.read(&gpu.dora_norm(&weight, &at, &bt, 0.5).unwrap()).unwrap();
            assert_within(&name, tolerance, &got, &reference::dora_norm(&values, &a, &b, 0.5, outputs, inputs));
        }
    }
}
