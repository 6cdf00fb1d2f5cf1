use super::reference;
use crate::Device;
use crate::error::TensorError;
use crate::ops::RotaryTable;
use crate::ops::testing::{assert_near, on_each, random, read, upload};

/// How far the CPU may be from the reference ([`assert_near`]).
const TOLERANCE: f32 = 1e-6;

fn angles(positions: usize, half: usize) -> (Vec<f32>, Vec<f32>) {
    let angle = |p: usize, i: usize| p as f32 * 10_000f32.powf(-(i as f32) / half as f32);
    let all = |f: fn(f32) -> f32| (0..positions).flat_map(|p| (0..half).map(move |i| f(angle(p, i)))).collect();
    (all(f32::cos), all(f32::sin))
}

fn table(cpu: &Device, positions: usize, rotary_dim: usize) -> RotaryTable {
    let half = rotary_dim / 2;
    let (cos, sin) = angles(positions, half);
    RotaryTable { cos: upload(cpu, &[positions, half], &cos), sin: upload(cpu, &[positions, half], &sin), rotary_dim }
}

#[test]
fn turning_agrees_with_the_reference_and_turns_back() {
    // The last two turn a part of each head only (Phi 3's partial rotary).
    for (n, heads, dim, rotary_dim) in [(1, 1, 2, 2), (33, 9, 64, 64), (7, 3, 16, 16), (5, 2, 256, 256), (9, 2, 96, 24)]
    {
        let x = random(1, n * heads * dim);
        let positions: Vec<u32> = (0..n as u32).map(|i| i * 5 % 40).collect();
        let got = on_each(|cpu| {
            let table = table(cpu, 40, rotary_dim);
            let mut t = upload(cpu, &[n, heads * dim], &x);
            cpu.rotary(&mut t, &positions, &table, dim, false).unwrap();
            let turned = read(cpu, &t);
            cpu.rotary(&mut t, &positions, &table, dim, true).unwrap();
            vec![turned, read(cpu, &t)]
        });
        let (cos, sin) = angles(40, rotary_dim / 2);
        let mut want = x.clone();
        reference::rotary(&mut want, &positions, &cos, &sin, rotary_dim, dim, false);
        assert_near(TOLERANCE, &got[0], &want);
        assert_near(TOLERANCE, &got[1], &x);
    }
}

#[test]
fn wrong_shapes_and_positions_are_refused() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let mut x = upload(&cpu, &[2, 8], &[1.0; 16]);
    let four = table(&cpu, 3, 4);
    assert_eq!(
        cpu.rotary(&mut x, &[0, 3], &four, 4, false),
        Err(TensorError::Index { op: "rotary", index: 3, rows: 3 })
    );
    assert!(cpu.rotary(&mut x, &[0], &four, 4, false).is_err());
    assert!(cpu.rotary(&mut x, &[0, 1], &four, 3, false).is_err());
    assert!(cpu.rotary(&mut x, &[0, 1], &table(&cpu, 3, 8), 4, false).is_err());
}
