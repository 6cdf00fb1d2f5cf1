use super::reference;
use crate::Device;
use crate::ops::Weight;
use crate::ops::testing::{assert_near, on_each, random, read, upload};

/// How far the CPU may be from the reference ([`assert_near`]).
const TOLERANCE: f32 = 5e-6;

/// The weight in each type it can be kept in.
fn weights(cpu: &Device, outputs: usize, inputs: usize, values: &[f32]) -> Vec<Weight> {
    let shape = [outputs, inputs];
    vec![
        Weight::Dense(upload(cpu, &shape, values)),
        Weight::Dense(cpu.upload_bf16(&shape, values).unwrap()),
        cpu.upload_nf4(&shape, values, false).unwrap(),
        cpu.upload_nf4(&shape, values, true).unwrap(),
    ]
}

#[test]
fn every_weight_type_agrees_with_its_own_values() {
    // One token, odd sizes, sizes of several slabs (more than 2^19 elements).
    let shapes = [(1, 64, 48), (1, 576, 1536), (5, 3, 7), (33, 43, 65), (40, 700, 801), (3, 1025, 1100)];
    for (n, inputs, outputs) in shapes {
        let (x, w, dy, before) =
            (random(1, n * inputs), random(2, outputs * inputs), random(3, n * outputs), random(4, n * inputs));
        for kind in 0..4 {
            let got = on_each(|cpu| {
                let weight = weights(cpu, outputs, inputs, &w).swap_remove(kind);
                let y = cpu.linear(&upload(cpu, &[n, inputs], &x), &weight).unwrap();
                let dyt = upload(cpu, &[n, outputs], &dy);
                let dx = cpu.linear_backward(&dyt, &weight, None).unwrap();
                let added = cpu.linear_backward(&dyt, &weight, Some(upload(cpu, &[n, inputs], &before))).unwrap();
                vec![read(cpu, &y), read(cpu, &dx), read(cpu, &added), cpu.read_weight(&weight).unwrap()]
            });
            let values = &got[3];
            assert_near(TOLERANCE, &got[0], &reference::forward(&x, values, n, inputs, outputs));
            let dx = reference::backward(&dy, values, n, inputs, outputs);
            assert_near(TOLERANCE, &got[1], &dx);
            assert_near(TOLERANCE, &got[2], &dx.iter().zip(&before).map(|(a, b)| a + b).collect::<Vec<_>>());
        }
    }
}

#[test]
fn the_weight_s_gradient_adds_up() {
    for (n, inputs, outputs) in [(1, 3, 2), (65, 576, 16), (100, 33, 130)] {
        let (x, dy, before) = (random(1, n * inputs), random(2, n * outputs), random(3, outputs * inputs));
        let got = on_each(|cpu| {
            let mut dw = upload(cpu, &[outputs, inputs], &before);
            let (xt, dyt) = (upload(cpu, &[n, inputs], &x), upload(cpu, &[n, outputs], &dy));
            cpu.linear_weight_backward(&dyt, &xt, &mut dw).unwrap();
            vec![read(cpu, &dw)]
        });
        let want = reference::weight_backward(&dy, &x, n, inputs, outputs);
        assert_near(TOLERANCE, &got[0], &want.iter().zip(&before).map(|(a, b)| a + b).collect::<Vec<_>>());
    }
}

#[test]
fn the_norms_of_dora_are_those_of_the_sum() {
    for (outputs, inputs, rank) in [(1, 1, 1), (48, 64, 4), (700, 900, 16), (130, 129, 3)] {
        let (w, a, b) = (random(1, outputs * inputs), random(2, rank * inputs), random(3, outputs * rank));
        for kind in 0..4 {
            let got = on_each(|cpu| {
                let weight = weights(cpu, outputs, inputs, &w).swap_remove(kind);
                let (at, bt) = (upload(cpu, &[rank, inputs], &a), upload(cpu, &[outputs, rank], &b));
                let norms = cpu.dora_norm(&weight, &at, &bt, 0.5).unwrap();
                vec![read(cpu, &norms), cpu.read_weight(&weight).unwrap()]
            });
            assert_near(TOLERANCE, &got[0], &reference::dora_norm(&got[1], &a, &b, 0.5, outputs, inputs));
        }
    }
}

#[test]
fn an_nf4_product_never_holds_the_weight_in_f32() {
    let cpu = Device::cpu(Some(2)).unwrap();
    let (outputs, inputs) = (4096, 1024);
    let w = cpu.upload_nf4(&[outputs, inputs], &random(1, outputs * inputs), true).unwrap();
    let x = upload(&cpu, &[1, inputs], &random(2, inputs));
    cpu.reset_peak();
    let (live, _) = cpu.allocated_bytes();
    cpu.linear(&x, &w).unwrap();
    let extra = cpu.allocated_bytes().1 - live;
    assert!(extra < (outputs * inputs) as u64, "{extra} bytes beside the weight");
}

#[test]
fn wrong_shapes_are_refused() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let w = Weight::Dense(upload(&cpu, &[2, 3], &[0.0; 6]));
    let (two, three) = (upload(&cpu, &[1, 2], &[0.0; 2]), upload(&cpu, &[1, 3], &[0.0; 3]));
    assert!(cpu.linear(&two, &w).is_err());
    assert!(cpu.linear_backward(&three, &w, None).is_err());
    assert!(cpu.linear_backward(&two, &w, Some(two.clone())).is_err());
    assert!(cpu.linear_weight_backward(&two, &three, &mut upload(&cpu, &[3, 2], &[0.0; 6])).is_err());
    assert!(cpu.dora_norm(&w, &two, &two, 1.0).is_err());
    let flat = Weight::Dense(upload(&cpu, &[6], &[0.0; 6]));
    assert!(cpu.linear(&three, &flat).is_err());
}
