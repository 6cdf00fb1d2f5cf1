//! Slabs of the vocabulary on this machine's first GPU, against the reference, the
//! CPU and the same head in one piece.

use super::reference;
use super::tests::{ALL, coefficients, flat, targets};
use crate::ops::check::distance;
use crate::ops::testing::{assert_bits, gpu_for_test, gpu_of, random};
use crate::ops::{Device, Head, TokenCoefficients, Weight, WeightKind, linear, matmul};

/// As conformance allows a GPU; tensor cores round their operands.
fn tolerance(gpu: &Device, operation: f64) -> f64 {
    operation.max(4.0 * gpu.info().product_rounding)
}

#[track_caller]
fn assert_within(name: &str, tolerance: f64, got: &[f32], want: &[f32]) {
    let worst = distance(got, want);
    assert!(worst <= tolerance, "{name}: {worst:e} is more than {tolerance:e}");
}

fn weight(ops: &Device, kind: WeightKind, v: usize, c: usize, values: &[f32]) -> Weight {
    match kind {
        WeightKind::F32 => Weight::Dense(ops.upload(&[v, c], values).unwrap()),
        WeightKind::Bf16 => Weight::Dense(ops.upload_bf16(&[v, c], values).unwrap()),
        WeightKind::Nf4 { double_quant } => ops.upload_nf4(&[v, c], values, double_quant).unwrap(),
    }
}

struct Case {
    m: usize,
    c: usize,
    v: usize,
    chunk_rows: usize,
    softcap: Option<f32>,
    kind: WeightKind,
}

impl Case {
    fn h(&self) -> Vec<f32> {
        random(1, self.m * self.c).iter().map(|x| 2.0 * x).collect()
    }

    /// Statistics, logits, gradients; statistics and gradients of the fused pass.
    fn run(&self, ops: &Device, d: &TokenCoefficients) -> Vec<Vec<f32>> {
        let Case { m, c, v, chunk_rows, softcap, kind } = *self;
        let weight = weight(ops, kind, v, c, &random(2, v * c));
        let head = Head { weight: &weight, softcap, chunk_rows };
        let (h, t) = (ops.upload(&[m, c], &self.h()).unwrap(), targets(m, v));
        let mut all = flat(ops.token_logp(&h, &head, &t, ALL).unwrap());
        all.push(ops.read(&ops.logits(&h, &head).unwrap()).unwrap());
        let before = || ops.upload(&[v, c], &random(3, v * c)).unwrap();
        let mut dw = before();
        let dh = ops.token_logp_backward(&h, &head, &t, d, Some(&mut dw)).unwrap();
        all.extend([ops.read(&dh).unwrap(), ops.read(&dw).unwrap()]);
        let mut dw = before();
        let (statistics, dh) = ops.token_logp_fused(&h, &head, &t, ALL, d, Some(&mut dw)).unwrap();
        all.extend(flat(statistics));
        all.extend([ops.read(&dh).unwrap(), ops.read(&dw).unwrap()]);
        // Without a gradient of the weight.
        let (_, frozen) = ops.token_logp_fused(&h, &head, &t, ALL, d, None).unwrap();
        assert_bits(&ops.read(&frozen).unwrap(), &all[13]);
        all
    }

    fn reference(&self, gpu: &Device, d: &TokenCoefficients) -> Vec<Vec<f32>> {
        let Case { m, c, v, softcap, kind, .. } = *self;
        let w = gpu.read_weight(&weight(gpu, kind, v, c, &random(2, v * c))).unwrap();
        let (h, t) = (self.h(), targets(m, v));
        let logits = reference::logits(&h, &w, softcap, m, c, v);
        let statistics = flat(reference::statistics(&logits, &t));
        let dz = reference::dlogits(&logits, softcap, &t, d);
        let dh = matmul::reference::matmul(&dz, &w, m, v, c);
        let dw = linear::reference::weight_backward(&dz, &h, m, c, v);
        let dw: Vec<f32> = dw.iter().zip(random(3, v * c)).map(|(a, b)| a + b).collect();
        [statistics.clone(), vec![logits, dh.clone(), dw.clone()], statistics, vec![dh, dw]].concat()
    }
}

#[test]
fn slabs_agree_with_the_reference_the_cpu_and_one_piece() {
    let Some(mut gpu) = gpu_for_test() else { return };
    let cpu = Device::cpu(Some(2)).unwrap();
    let (nf4, bf16) = (WeightKind::Nf4 { double_quant: true }, WeightKind::Bf16);
    // Rows of the vocabulary in a slab; the last slab is short.
    let cases = [
        (20_032, Case { m: 3, c: 16, v: 49_153, chunk_rows: 2, softcap: None, kind: bf16 }),
        (20_032, Case { m: 3, c: 16, v: 49_153, chunk_rows: 0, softcap: Some(3.0), kind: nf4 }),
        (64, Case { m: 70, c: 24, v: 301, chunk_rows: 32, softcap: Some(3.0), kind: bf16 }),
        (128, Case { m: 33, c: 7, v: 1000, chunk_rows: 0, softcap: None, kind: nf4 }),
        (64, Case { m: 1, c: 8, v: 65, chunk_rows: 0, softcap: None, kind: bf16 }),
    ];
    for (slab, case) in cases {
        let name = format!("{} of {} in {:?}", slab, case.v, case.kind);
        let d = coefficients(case.m);
        let whole = case.run(&gpu, &d);
        let panel = gpu_of(&gpu).limits.panel_bytes;
        gpu.gpu_mut().limits.panel_bytes = 4 * (slab * case.c) as u64;
        let got = case.run(&gpu, &d);
        let again = case.run(&gpu, &d);
        gpu.gpu_mut().limits.panel_bytes = panel;
        let (want, host) = (case.reference(&gpu, &d), case.run(&cpu, &d));
        for i in 0..want.len() {
            let gradient = [6, 7, 13, 14].contains(&i);
            let tolerance = tolerance(&gpu, if gradient { 5e-5 } else { 2e-5 });
            assert_bits(&got[i], &again[i]);
            assert_within(&format!("{name}, reference {i}"), tolerance, &got[i], &want[i]);
            assert_within(&format!("{name}, CPU {i}"), tolerance, &got[i], &host[i]);
            assert_within(&format!("{name}, one piece {i}"), tolerance, &got[i], &whole[i]);
        }
    }
}

#[test]
fn a_head_in_slabs_never_lies_whole_in_f32() {
    let Some(mut gpu) = gpu_for_test() else { return };
    let (m, c, v) = (4, 64, 10_000);
    let weight = weight(&gpu, WeightKind::Nf4 { double_quant: false }, v, c, &random(2, v * c));
    let h = gpu.upload(&[m, c], &random(1, m * c)).unwrap();
    gpu.gpu_mut().limits.panel_bytes = 4 * (1024 * c) as u64;
    gpu.reset_peak();
    let (live, _) = gpu.allocated_bytes();
    let head = Head { weight: &weight, softcap: None, chunk_rows: 0 };
    gpu.token_logp_fused(&h, &head, &targets(m, v), ALL, &coefficients(m), None).unwrap();
    let extra = gpu.allocated_bytes().1 - live;
    assert!(extra < gpu_of(&gpu).limits.panel_bytes + 4 * (m * 1024 + 4096) as u64, "{extra} bytes beside the weight");
}

#[test]
fn far_logits_do_not_overflow_across_slabs_and_nan_comes_through() {
    let Some(mut gpu) = gpu_for_test() else { return };
    let v = 200;
    // The largest logit lies in the last slab; the others are out of e^x's range.
    let mut w = vec![-1e4f32; v];
    w[199] = 1e4;
    w[0] = 0.0;
    let weight = Weight::Dense(gpu.upload_bf16(&[v, 1], &w).unwrap());
    gpu.gpu_mut().limits.panel_bytes = 4 * 64;
    let head = Head { weight: &weight, softcap: None, chunk_rows: 0 };
    let h = gpu.upload(&[3, 1], &[1.0, -1.0, f32::NAN]).unwrap();
    let top = half::bf16::from_f32(1e4).to_f32();
    let s = gpu.token_logp(&h, &head, &[199, 199, 0], ALL).unwrap();
    assert_eq!((s.logp[0], s.correct[0], s.entropy[0]), (0.0, true, 0.0));
    assert!((s.logp[1] + 2.0 * top).abs() < 8.0 && !s.correct[1], "{}", s.logp[1]);
    assert!(s.logp[2].is_nan() && s.lse[2].is_nan() && s.entropy[2].is_nan() && !s.correct[2]);
    // NaN in one row of the weight, in a middle slab, reaches every row's statistics.
    w[100] = f32::NAN;
    let weight = Weight::Dense(gpu.upload_bf16(&[v, 1], &w).unwrap());
    let head = Head { weight: &weight, softcap: None, chunk_rows: 0 };
    let s = gpu.token_logp(&h, &head, &[199, 199, 0], ALL).unwrap();
    assert!(s.logp.iter().chain(&s.lse).chain(&s.entropy).all(|x| x.is_nan()), "{s:?}");
    let dh = gpu.token_logp_backward(&h, &head, &[1, 2, 3], &coefficients(3), None).unwrap();
    assert!(gpu.read(&dh).unwrap().iter().all(|x| x.is_nan()));
}
