use super::reference;
use crate::Device;
use crate::ops::testing::{on_each, random, upload};

#[test]
fn the_sum_of_squares_is_that_of_f64_and_the_same_on_any_threads() {
    let lengths = [1, 100, 16_384, 50_001];
    let values: Vec<Vec<f32>> = lengths.iter().enumerate().map(|(i, len)| random(i as u32, *len)).collect();
    let got = on_each(|cpu| {
        let tensors: Vec<_> = values.iter().map(|x| upload(cpu, &[x.len()], x)).collect();
        let sum = cpu.sum_squares(&tensors.iter().collect::<Vec<_>>()).unwrap();
        // Both halves of the f64's bits.
        vec![vec![f32::from_bits((sum.to_bits() >> 32) as u32), f32::from_bits(sum.to_bits() as u32)]]
    });
    let sum = f64::from_bits(u64::from(got[0][0].to_bits()) << 32 | u64::from(got[0][1].to_bits()));
    let want: f64 = values.iter().map(|x| reference::sum_squares(x)).sum();
    assert!((sum - want).abs() <= 1e-12 * want, "{sum} {want}");
}

#[test]
fn nan_comes_through_and_nothing_is_zero() {
    let cpu = Device::cpu(Some(2)).unwrap();
    assert_eq!(cpu.sum_squares(&[]).unwrap(), 0.0);
    assert!(cpu.sum_squares(&[&upload(&cpu, &[2], &[1.0, f32::NAN])]).unwrap().is_nan());
    // Squares beyond f32's range.
    assert!(cpu.sum_squares(&[&upload(&cpu, &[2], &[1e30, 1.0])]).unwrap() > 9e59);
}
