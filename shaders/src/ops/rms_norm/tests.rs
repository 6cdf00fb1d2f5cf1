use super::reference;
use crate::Device;
use crate::ops::testing::{assert_gradient, assert_near, inner, on_each, random, read, upload};

/// How far the CPU may be from the reference ([`assert_near`]).
const TOLERANCE: f32 = 2e-6;

#[test]
fn forward_and_backward_agree_with_the_reference() {
    // Whole rows, and heads of a row (the weight is shorter than a row).
    for (n, c, group) in [(1, 2, 2), (1, 576, 576), (37, 577, 577), (100, 576, 64), (65, 48, 16), (3, 512, 256)] {
        for (epsilon, offset) in [(1e-5, 0.0), (1e-6, 1.0)] {
            let (x, dy, w, before) = (random(1, n * c), random(2, n * c), random(3, group), random(4, n * c));
            let got = on_each(|cpu| {
                let (xt, dyt, wt) = (upload(cpu, &[n, c], &x), upload(cpu, &[n, c], &dy), upload(cpu, &[group], &w));
                let (y, rstd) = cpu.rms_norm(&xt, &wt, epsilon, offset).unwrap();
                let mut dw = upload(cpu, &[group], &w);
                let dx = cpu.rms_norm_backward(&dyt, &xt, &wt, &rstd, offset, None, Some(&mut dw)).unwrap();
                let into = Some(upload(cpu, &[n, c], &before));
                let added = cpu.rms_norm_backward(&dyt, &xt, &wt, &rstd, offset, into, None).unwrap();
                vec![read(cpu, &y), read(cpu, &rstd), read(cpu, &dx), read(cpu, &dw), read(cpu, &added)]
            });
            let (y, rstd) = reference::forward(&x, &w, epsilon, offset);
            let (dx, dw) = reference::backward(&dy, &x, &w, &rstd, offset);
            assert_near(TOLERANCE, &got[0], &y);
            assert_near(TOLERANCE, &got[1], &rstd);
            assert_near(TOLERANCE, &got[2], &dx);
            assert_near(TOLERANCE, &got[3], &dw.iter().zip(&w).map(|(a, b)| a + b).collect::<Vec<_>>());
            assert_near(TOLERANCE, &got[4], &dx.iter().zip(&before).map(|(a, b)| a + b).collect::<Vec<_>>());
        }
    }
}

#[test]
fn the_reference_s_backward_is_the_derivative() {
    let (n, c) = (3, 24);
    let (x, dy, w) = (random(1, n * c), random(2, n * c), random(3, c));
    let (_, rstd) = reference::forward(&x, &w, 1e-5, 1.0);
    let (dx, dw) = reference::backward(&dy, &x, &w, &rstd, 1.0);
    assert_gradient("rms_norm x", &x, &dx, 40, 1e-2, 2e-3, |x| inner(&reference::forward(x, &w, 1e-5, 1.0).0, &dy));
    assert_gradient("rms_norm w", &w, &dw, 24, 1e-2, 2e-3, |w| inner(&reference::forward(&x, w, 1e-5, 1.0).0, &dy));
}

#[test]
fn extremes_and_errors() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let w = upload(&cpu, &[2], &[1.0, 1.0]);
    let (y, rstd) = cpu.rms_norm(&upload(&cpu, &[2, 2], &[0.0, 0.0, f32::NAN, 1.0]), &w, 1e-5, 0.0).unwrap();
    let y = read(&cpu, &y);
    assert!(y[0] == 0.0 && y[1] == 0.0 && y[2].is_nan() && y[3].is_nan());
    let odd = upload(&cpu, &[1, 3], &[0.0; 3]);
    assert!(cpu.rms_norm(&odd, &w, 1e-5, 0.0).is_err());
    let x = upload(&cpu, &[1, 2], &[0.0; 2]);
    assert!(cpu.rms_norm_backward(&x, &x, &w, &rstd, 0.0, None, None).is_err());
    assert!(cpu.rms_norm_backward(&odd, &x, &w, &rstd, 0.0, None, None).is_err());
}
