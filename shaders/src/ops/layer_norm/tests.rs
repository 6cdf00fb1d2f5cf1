use super::reference;
use crate::Device;
use crate::ops::testing::{assert_gradient, assert_near, inner, on_each, random, read, upload};

/// How far the CPU may be from the reference ([`assert_near`]).
const TOLERANCE: f32 = 3e-6;

#[test]
fn forward_and_backward_agree_with_the_reference() {
    for (n, c) in [(1, 2), (1, 768), (37, 577), (100, 64)] {
        // A mean far from zero, where a one-pass variance would cancel.
        let x: Vec<f32> = random(1, n * c).iter().map(|x| x + 30.0).collect();
        let (dy, w, b, before) = (random(2, n * c), random(3, c), random(4, c), random(5, n * c));
        let got = on_each(|cpu| {
            let (xt, dyt) = (upload(cpu, &[n, c], &x), upload(cpu, &[n, c], &dy));
            let (wt, bt) = (upload(cpu, &[c], &w), upload(cpu, &[c], &b));
            let (y, s) = cpu.layer_norm(&xt, &wt, &bt, 1e-5).unwrap();
            let (mut dw, mut db) = (cpu.copy(&wt).unwrap(), cpu.copy(&bt).unwrap());
            let into = Some(upload(cpu, &[n, c], &before));
            let dx = cpu.layer_norm_backward(&dyt, &xt, &wt, &s, into, Some((&mut dw, &mut db))).unwrap();
            let plain = cpu.layer_norm_backward(&dyt, &xt, &wt, &s, None, None).unwrap();
            vec![read(cpu, &y), read(cpu, &s), read(cpu, &dx), read(cpu, &dw), read(cpu, &db), read(cpu, &plain)]
        });
        let (y, s) = reference::forward(&x, &w, &b, 1e-5);
        let (dx, dw, db) = reference::backward(&dy, &x, &w, &s);
        let plus = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<_>>();
        // The mean of 30 costs the difference x − mean five of its bits.
        let near = |got: &[f32], want: &[f32]| {
            let scale = want.iter().fold(1.0f32, |m, w| m.max(w.abs()));
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 3e-5 * scale), "{n}x{c}");
        };
        near(&got[0], &y);
        assert_near(
            TOLERANCE,
            &got[1].chunks(2).map(|s| s[0]).collect::<Vec<_>>(),
            &s.chunks(2).map(|s| s[0]).collect::<Vec<_>>(),
        );
        near(&got[2], &plus(&dx, &before));
        near(&got[3], &plus(&dw, &w));
        assert_near(TOLERANCE, &got[4], &plus(&db, &b));
        near(&got[5], &dx);
    }
}

#[test]
fn the_reference_s_backward_is_the_derivative() {
    let (n, c) = (3, 24);
    let (x, dy, w, b) = (random(1, n * c), random(2, n * c), random(3, c), random(4, c));
    let (_, s) = reference::forward(&x, &w, &b, 1e-5);
    let (dx, dw, db) = reference::backward(&dy, &x, &w, &s);
    let loss = |x: &[f32], w: &[f32], b: &[f32]| inner(&reference::forward(x, w, b, 1e-5).0, &dy);
    assert_gradient("layer_norm x", &x, &dx, 40, 1e-2, 2e-3, |x| loss(x, &w, &b));
    assert_gradient("layer_norm w", &w, &dw, 24, 1e-2, 2e-3, |w| loss(&x, w, &b));
    assert_gradient("layer_norm b", &b, &db, 24, 1e-2, 2e-3, |b| loss(&x, &w, b));
}

#[test]
fn wrong_shapes_are_refused() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let (w, b) = (upload(&cpu, &[2], &[1.0; 2]), upload(&cpu, &[3], &[0.0; 3]));
    assert!(cpu.layer_norm(&upload(&cpu, &[1, 2], &[0.0; 2]), &w, &b, 1e-5).is_err());
    assert!(cpu.layer_norm(&upload(&cpu, &[1, 3], &[0.0; 3]), &w, &w, 1e-5).is_err());
}
