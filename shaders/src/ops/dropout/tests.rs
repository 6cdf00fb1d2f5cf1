use super::reference;
use crate::Device;
use crate::ops::testing::{assert_bits, on_each, random, read, upload};
use crate::random::Key;

#[test]
fn the_mask_is_the_reference_s_on_any_threads() {
    for len in [1, 5, 16_383, 40_001] {
        let x = random(1, len);
        for (p, step) in [(0.0, 1), (0.1, 2), (0.5, 3), (0.95, 4)] {
            let key = Key::new(9, step, 5);
            let got = on_each(|cpu| vec![read(cpu, &cpu.dropout(&upload(cpu, &[len], &x), p, key).unwrap())]);
            assert_bits(&got[0], &reference::dropout(&x, p, key));
        }
    }
}

#[test]
fn a_tenth_is_dropped_and_the_mean_stays() {
    let cpu = Device::cpu(Some(2)).unwrap();
    let y = read(&cpu, &cpu.dropout(&upload(&cpu, &[100_000], &[1.0; 100_000]), 0.1, Key::new(1, 2, 3)).unwrap());
    let dropped = y.iter().filter(|y| **y == 0.0).count();
    assert!((9_500..10_500).contains(&dropped), "{dropped}");
    let mean = y.iter().map(|y| f64::from(*y)).sum::<f64>() / 1e5;
    assert!((mean - 1.0).abs() < 0.01, "{mean}");
}

#[test]
fn impossible_probabilities_are_refused() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let x = upload(&cpu, &[1], &[1.0]);
    for p in [1.0, -0.1, f32::NAN] {
        assert!(cpu.dropout(&x, p, Key::new(0, 0, 0)).is_err());
    }
}
