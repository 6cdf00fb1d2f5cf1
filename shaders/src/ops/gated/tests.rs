use super::reference;
use crate::Device;
use crate::ops::Activation;
use crate::ops::testing::{assert_gradient, assert_near, inner, on_each, random, read, upload};

/// How far the CPU may be from the reference ([`assert_near`]).
const TOLERANCE: f32 = 2e-6;

const ALL: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::Gelu];

/// From −20 to 20, dense about zero.
fn wide(place: u32, len: usize) -> Vec<f32> {
    random(place, len).iter().map(|x| 20.0 * x * x * x).collect()
}

#[test]
fn all_curves_agree_with_the_reference() {
    for activation in ALL {
        for len in [1, 7, 1536, 40_001] {
            // One number alone has no others to measure its error by.
            let gate = if len == 1 { random(1, 1) } else { wide(1, len) };
            let (up, dy) = (random(2, len), random(3, len));
            let got = on_each(|cpu| {
                let (g, u, d) = (upload(cpu, &[len], &gate), upload(cpu, &[len], &up), upload(cpu, &[len], &dy));
                let y = cpu.gated(&g, &u, activation).unwrap();
                let (dg, du) = cpu.gated_backward(&d, &g, &u, activation).unwrap();
                let plain = cpu.activation(&g, activation).unwrap();
                let slope = cpu.activation_backward(&d, &g, activation).unwrap();
                vec![read(cpu, &y), read(cpu, &dg), read(cpu, &du), read(cpu, &plain), read(cpu, &slope)]
            });
            let (dgate, dup) = reference::gated_backward(&dy, &gate, &up, activation);
            assert_near(TOLERANCE, &got[0], &reference::gated(&gate, &up, activation));
            assert_near(TOLERANCE, &got[1], &dgate);
            assert_near(TOLERANCE, &got[2], &dup);
            let ones = vec![1.0; len];
            assert_near(TOLERANCE, &got[3], &reference::gated(&gate, &ones, activation));
            assert_near(TOLERANCE, &got[4], &reference::gated_backward(&dy, &gate, &ones, activation).0);
        }
    }
}

#[test]
fn the_reference_s_backward_is_the_derivative() {
    for activation in ALL {
        let (gate, up, dy) = (wide(1, 60), random(2, 60), random(3, 60));
        let (dgate, dup) = reference::gated_backward(&dy, &gate, &up, activation);
        let loss = |gate: &[f32], up: &[f32]| inner(&reference::gated(gate, up, activation), &dy);
        assert_gradient("gate", &gate, &dgate, 60, 1e-2, 2e-3, |gate| loss(gate, &up));
        assert_gradient("up", &up, &dup, 60, 1e-2, 2e-3, |up| loss(&gate, up));
    }
}

#[test]
fn extremes_saturate_and_nan_stays() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let x = upload(&cpu, &[4], &[-1e4, 1e4, 0.0, f32::NAN]);
    for activation in ALL {
        let y = read(&cpu, &cpu.activation(&x, activation).unwrap());
        assert!(y[0] == 0.0 && y[1] == 1e4 && y[2] == 0.0 && y[3].is_nan(), "{activation:?}: {y:?}");
        let ones = upload(&cpu, &[4], &[1.0; 4]);
        let slope = read(&cpu, &cpu.activation_backward(&ones, &x, activation).unwrap());
        assert!(slope[0].abs() < 1e-6 && (slope[1] - 1.0).abs() < 1e-6 && slope[2] == 0.5, "{activation:?}: {slope:?}");
    }
    assert!(cpu.gated(&x, &upload(&cpu, &[3], &[0.0; 3]), Activation::Silu).is_err());
}
