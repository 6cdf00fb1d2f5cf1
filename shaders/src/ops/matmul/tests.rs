use super::reference::{matmul, transpose};
use crate::Device;
use crate::ops::testing::{assert_near, on_each, random, read, upload};

/// How far the CPU may be from the reference ([`assert_near`]).
const TOLERANCE: f32 = 5e-6;

#[test]
fn every_transposition_agrees_with_the_reference() {
    let shapes = [
        (1, 1, 1),
        (1, 64, 576),
        (7, 3, 5),
        (33, 65, 17),
        (1, 576, 49),
        (130, 16, 300),
        (300, 130, 16),
        (129, 257, 65),
    ];
    for (m, k, n) in shapes {
        let (a, b, c) = (random(1, m * k), random(2, k * n), random(3, m * n));
        let product = matmul(&a, &b, m, k, n);
        for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
            let got = on_each(|cpu| {
                let x = if ta { upload(cpu, &[k, m], &transpose(&a, m, k)) } else { upload(cpu, &[m, k], &a) };
                let y = if tb { upload(cpu, &[n, k], &transpose(&b, k, n)) } else { upload(cpu, &[k, n], &b) };
                let new = cpu.matmul(&x, ta, &y, tb, 1.0, None).unwrap();
                let into = Some(upload(cpu, &[m, n], &c));
                let added = cpu.matmul(&x, ta, &y, tb, -0.5, into).unwrap();
                vec![read(cpu, &new), read(cpu, &added)]
            });
            assert_near(TOLERANCE, &got[0], &product);
            let want: Vec<f32> = product.iter().zip(&c).map(|(p, c)| c - 0.5 * p).collect();
            assert_near(TOLERANCE, &got[1], &want);
        }
    }
}

#[test]
fn recycled_memory_does_not_leak_into_a_product() {
    // A new result is written, not added to, even if the buffer held NaN.
    let cpu = Device::cpu(Some(2)).unwrap();
    drop(upload(&cpu, &[4, 4], &[f32::NAN; 16]));
    let x = upload(&cpu, &[4, 4], &random(1, 16));
    drop(upload(&cpu, &[4, 4], &[f32::NAN; 16]));
    assert!(read(&cpu, &cpu.matmul(&x, false, &x, true, 1.0, None).unwrap()).iter().all(|v| v.is_finite()));
}

#[test]
fn depths_that_differ_are_refused() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let a = upload(&cpu, &[2, 3], &[0.0; 6]);
    assert!(cpu.matmul(&a, false, &a, false, 1.0, None).is_err());
    let into = Some(upload(&cpu, &[3, 3], &[0.0; 9]));
    assert!(cpu.matmul(&a, false, &a, true, 1.0, into).is_err());
}
