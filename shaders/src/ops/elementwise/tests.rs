use super::reference;
use crate::Device;
use crate::error::TensorError;
use crate::ops::testing::{assert_bits, assert_near, on_each, random, read, upload};

/// How far the CPU may be from the reference ([`assert_near`]).
const TOLERANCE: f32 = 1e-7;

#[test]
fn sums_and_multiples_agree_with_the_reference() {
    for len in [1, 3, 1000, 16_384, 100_003] {
        let (a, b) = (random(1, len), random(2, len));
        let got = on_each(|cpu| {
            let (x, y) = (upload(cpu, &[len], &a), upload(cpu, &[len], &b));
            let sum = cpu.add(&x, &y).unwrap();
            let mut scaled = cpu.copy(&y).unwrap();
            cpu.add_scaled(&mut scaled, &x, 0.37).unwrap();
            let mut tripled = cpu.copy(&x).unwrap();
            cpu.scale(&mut tripled, 3.0).unwrap();
            let mut zero = cpu.copy(&x).unwrap();
            cpu.fill_zero(&mut zero).unwrap();
            vec![read(cpu, &sum), read(cpu, &scaled), read(cpu, &tripled), read(cpu, &zero)]
        });
        assert_near(TOLERANCE, &got[0], &reference::add(&a, &b));
        let mut want = b.clone();
        reference::add_scaled(&mut want, &a, 0.37);
        assert_near(TOLERANCE, &got[1], &want);
        assert_bits(&got[2], &a.iter().map(|x| x * 3.0).collect::<Vec<_>>());
        assert!(got[3].iter().all(|x| *x == 0.0));
    }
}

#[test]
fn quotients_have_the_bits_of_the_host_s() {
    for len in [1, 3, 16_384, 100_003] {
        let (a, b) = (random(1, len), random(2, len));
        let got = on_each(|cpu| {
            let quotient = cpu.divide(&upload(cpu, &[len], &a), &upload(cpu, &[len], &b)).unwrap();
            vec![read(cpu, &quotient)]
        });
        assert_bits(&got[0], &reference::divide(&a, &b));
    }
    let cpu = Device::cpu(Some(1)).unwrap();
    let (x, y) = (upload(&cpu, &[2], &[1.0, 0.0]), upload(&cpu, &[2], &[0.0, 0.0]));
    let got = read(&cpu, &cpu.divide(&x, &y).unwrap());
    assert!(got[0] == f32::INFINITY && got[1].is_nan());
    let other = upload(&cpu, &[1, 2], &[1.0; 2]);
    assert!(matches!(cpu.divide(&x, &other), Err(TensorError::Shape { op: "divide", .. })));
}

#[test]
fn nan_and_infinity_pass_through() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let x = upload(&cpu, &[3], &[f32::NAN, f32::INFINITY, 1.0]);
    let y = read(&cpu, &cpu.add(&x, &x).unwrap());
    assert!(y[0].is_nan() && y[1] == f32::INFINITY && y[2] == 2.0);
}

#[test]
fn shared_storage_and_wrong_shapes_are_refused() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let mut x = upload(&cpu, &[4], &[1.0; 4]);
    let other = upload(&cpu, &[2, 2], &[1.0; 4]);
    assert!(matches!(cpu.add(&x, &other), Err(TensorError::Shape { op: "add", .. })));
    let shared = x.clone();
    assert_eq!(cpu.scale(&mut x, 2.0), Err(TensorError::Shared { op: "scale" }));
    drop(shared);
    cpu.scale(&mut x, 2.0).unwrap();
    let foreign = upload(&Device::cpu(Some(1)).unwrap(), &[4], &[1.0; 4]);
    assert!(matches!(cpu.add(&x, &foreign), Err(TensorError::Device { .. })));
    let ids = cpu.upload_u32(&[4], &[1; 4]).unwrap();
    assert!(matches!(cpu.add(&x, &ids), Err(TensorError::Type { got: "u32", .. })));
    assert!(cpu.upload(&[3], &[1.0; 4]).is_err());
    assert!(cpu.write(&mut x, &[1.0; 3]).is_err());
}

#[test]
fn bf16_rounds_to_nearest_even() {
    let cpu = Device::cpu(Some(2)).unwrap();
    // 1 + 2⁻⁸ lies half way and goes to the even 1; 1 + 3·2⁻⁸ to 1 + 2⁻⁶.
    let values = [1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -0.1, f32::INFINITY];
    let x = cpu.upload_bf16(&[5], &values).unwrap();
    assert_bits(&read(&cpu, &x), &[1.0, 1.0, 1.015_625, -0.100_097_656, f32::INFINITY]);
    assert_eq!(x.bytes(), 10);
}

#[test]
fn live_and_peak_bytes_are_counted() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let x = cpu.zeros(&[1024]).unwrap();
    let y = cpu.zeros(&[1024]).unwrap();
    assert_eq!(cpu.allocated_bytes(), (8192, 8192));
    drop(y);
    assert_eq!(cpu.allocated_bytes(), (4096, 8192));
    cpu.reset_peak();
    assert_eq!(cpu.allocated_bytes(), (4096, 4096));
    drop(x);
    cpu.trim();
    assert_eq!(cpu.allocated_bytes().0, 0);
}

#[test]
fn rows_are_scaled_by_one_factor_each() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let mut y = upload(&cpu, &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    cpu.scale_rows(&mut y, &[2.0, 0.0, -1.0]).unwrap();
    assert_eq!(read(&cpu, &y), [2.0, 4.0, 0.0, 0.0, -5.0, -6.0]);
    assert!(matches!(cpu.scale_rows(&mut y, &[1.0]), Err(TensorError::Shape { .. })));
    let mut none = upload(&cpu, &[0, 2], &[]);
    cpu.scale_rows(&mut none, &[]).unwrap();
}
