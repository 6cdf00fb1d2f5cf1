use super::reference;
use crate::Device;
use crate::ops::testing::{assert_gradient, assert_near, on_each, random, read, upload};
use crate::ops::{Head, StatisticSet, TokenCoefficients, TokenStatistics, Weight};

/// How far the CPU may be from the reference ([`assert_near`]).
const TOLERANCE: f32 = 5e-6;
const BACKWARD_TOLERANCE: f32 = 2e-5;

pub(super) const ALL: StatisticSet = StatisticSet { entropy: true, mean_logp: true, correct: true };

pub(super) fn targets(m: usize, v: usize) -> Vec<u32> {
    (0..m).map(|i| if i == 0 { v - 1 } else { i * 37 % v } as u32).collect()
}

pub(super) fn coefficients(m: usize) -> TokenCoefficients {
    TokenCoefficients { logp: random(5, m), lse: random(6, m), entropy: random(7, m), mean_logp: random(8, m) }
}

pub(super) fn flat(s: TokenStatistics) -> Vec<Vec<f32>> {
    vec![s.logp, s.lse, s.entropy, s.mean_logp, s.correct.iter().map(|c| f32::from(u8::from(*c))).collect()]
}

#[test]
fn statistics_and_gradients_agree_with_the_reference() {
    // One token; a vocabulary of 49153; chunks that do not divide the rows.
    for (m, c, v, chunk) in [(1, 8, 5, 0), (3, 16, 49_153, 2), (70, 24, 301, 32), (130, 8, 1000, 0)] {
        for softcap in [None, Some(3.0)] {
            let h: Vec<f32> = random(1, m * c).iter().map(|x| 2.0 * x).collect();
            let (w, before) = (random(2, v * c), random(3, v * c));
            let (t, d) = (targets(m, v), coefficients(m));
            let got = on_each(|cpu| {
                let weight = Weight::Dense(upload(cpu, &[v, c], &w));
                let head = Head { weight: &weight, softcap, chunk_rows: chunk };
                let ht = upload(cpu, &[m, c], &h);
                let mut all = flat(cpu.token_logp(&ht, &head, &t, ALL).unwrap());
                let mut dw = upload(cpu, &[v, c], &before);
                let dh = cpu.token_logp_backward(&ht, &head, &t, &d, Some(&mut dw)).unwrap();
                let mut dw_fused = upload(cpu, &[v, c], &before);
                let (s, dh_fused) = cpu.token_logp_fused(&ht, &head, &t, ALL, &d, Some(&mut dw_fused)).unwrap();
                all.extend([read(cpu, &dh), read(cpu, &dw), read(cpu, &dh_fused), read(cpu, &dw_fused)]);
                all.extend(flat(s));
                all.push(read(cpu, &cpu.logits(&ht, &head).unwrap()));
                all
            });
            let logits = reference::logits(&h, &w, softcap, m, c, v);
            assert_near(TOLERANCE, &got[14], &logits);
            let want = flat(reference::statistics(&logits, &t));
            for i in 0..5 {
                assert_near(TOLERANCE, &got[i], &want[i]);
                assert_near(TOLERANCE, &got[9 + i], &want[i]);
            }
            let dz = reference::dlogits(&logits, softcap, &t, &d);
            let dh = crate::ops::matmul::reference::matmul(&dz, &w, m, v, c);
            let dw = crate::ops::linear::reference::weight_backward(&dz, &h, m, c, v);
            let dw: Vec<f32> = dw.iter().zip(&before).map(|(a, b)| a + b).collect();
            for i in [5, 7] {
                assert_near(BACKWARD_TOLERANCE, &got[i], &dh);
                assert_near(BACKWARD_TOLERANCE, &got[i + 1], &dw);
            }
        }
    }
}

#[test]
fn the_reference_s_gradient_is_the_derivative_of_every_statistic() {
    let (m, c, v) = (4, 6, 11);
    let (h, w) = (random(1, m * c), random(2, v * c));
    let t = targets(m, v);
    let some = random(9, m);
    let zero = Vec::new;
    let each = [
        ("logp", TokenCoefficients { logp: some.clone(), ..Default::default() }),
        ("lse", TokenCoefficients { lse: some.clone(), ..Default::default() }),
        ("entropy", TokenCoefficients { entropy: some.clone(), ..Default::default() }),
        ("mean_logp", TokenCoefficients { mean_logp: some.clone(), ..Default::default() }),
        ("all", TokenCoefficients { logp: some.clone(), lse: some.clone(), entropy: some, mean_logp: zero() }),
    ];
    for softcap in [None, Some(1.5)] {
        for (name, d) in &each {
            let loss = |h: &[f32]| {
                let s = reference::statistics(&reference::logits(h, &w, softcap, m, c, v), &t);
                let pairs =
                    [(&s.logp, &d.logp), (&s.lse, &d.lse), (&s.entropy, &d.entropy), (&s.mean_logp, &d.mean_logp)];
                pairs.iter().map(|(s, d)| crate::ops::testing::inner(s, d)).sum()
            };
            let dz = reference::dlogits(&reference::logits(&h, &w, softcap, m, c, v), softcap, &t, d);
            let dh = crate::ops::matmul::reference::matmul(&dz, &w, m, v, c);
            assert_gradient(name, &h, &dh, m * c, 1e-2, 5e-3, loss);
        }
    }
}

#[test]
fn only_what_is_asked_for_comes_back() {
    let cpu = Device::cpu(Some(2)).unwrap();
    let weight = Weight::Dense(upload(&cpu, &[7, 3], &random(1, 21)));
    let head = Head { weight: &weight, softcap: None, chunk_rows: 0 };
    let h = upload(&cpu, &[2, 3], &random(2, 6));
    let s = cpu.token_logp(&h, &head, &[1, 6], StatisticSet::default()).unwrap();
    assert!(s.logp.len() == 2 && s.lse.len() == 2);
    assert!(s.entropy.is_empty() && s.mean_logp.is_empty() && s.correct.is_empty());
    // No coefficients: no gradient.
    let dh = cpu.token_logp_backward(&h, &head, &[1, 6], &TokenCoefficients::default(), None).unwrap();
    assert!(read(&cpu, &dh).iter().all(|d| *d == 0.0));
    // No tokens.
    let none = cpu.gather_rows(&h, &[]).unwrap();
    assert!(cpu.token_logp(&none, &head, &[], ALL).unwrap().logp.is_empty());
}

#[test]
fn logits_of_any_size_do_not_overflow_and_nan_comes_through() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let weight = Weight::Dense(upload(&cpu, &[3, 1], &[1e4, -1e4, 0.0]));
    let head = Head { weight: &weight, softcap: None, chunk_rows: 0 };
    let h = upload(&cpu, &[3, 1], &[1.0, -1.0, f32::NAN]);
    let s = cpu.token_logp(&h, &head, &[0, 0, 0], ALL).unwrap();
    assert_eq!((s.logp[0], s.logp[1]), (0.0, -2e4));
    assert_eq!((s.entropy[0], s.correct[0], s.correct[1]), (0.0, true, false));
    assert!(s.logp[2].is_nan() && s.lse[2].is_nan() && s.entropy[2].is_nan() && !s.correct[2]);
}

#[test]
fn wrong_shapes_and_targets_are_refused() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let weight = Weight::Dense(upload(&cpu, &[7, 3], &[0.0; 21]));
    let head = Head { weight: &weight, softcap: None, chunk_rows: 0 };
    let h = upload(&cpu, &[2, 3], &[0.0; 6]);
    assert!(cpu.token_logp(&h, &head, &[0, 7], ALL).is_err());
    assert!(cpu.token_logp(&h, &head, &[0], ALL).is_err());
    assert!(cpu.token_logp(&upload(&cpu, &[3, 2], &[0.0; 6]), &head, &[0; 3], ALL).is_err());
    let short = TokenCoefficients { logp: vec![1.0], ..Default::default() };
    assert!(cpu.token_logp_backward(&h, &head, &[0, 1], &short, None).is_err());
    let mut dw = upload(&cpu, &[3, 7], &[0.0; 21]);
    assert!(cpu.token_logp_backward(&h, &head, &[0, 1], &TokenCoefficients::default(), Some(&mut dw)).is_err());
    assert!(cpu.logits(&h, &Head { softcap: Some(0.0), ..head }).is_err());
}
